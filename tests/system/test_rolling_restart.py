"""A rolling restart of every service while it is asked: nobody gets an error, and nobody another answer.

By the real command, on real processes, two of each service; Envoy, which is the door, stays.
"""

import asyncio
from collections.abc import Iterator

import pytest

from services.console.mesh.plan import in_restart_order
from tests.system.closed_loops import Caller, ClosedLoops
from tests.system.mesh import UP_TIMEOUT_S, Mesh

Answers = dict[tuple[str, int], list[int]]

DRAIN_S = 0.8
SHORT, WITHIN, BEYOND = 8, 25, 200
"""Tokens, at some 8 ms each: answers that are soon over, that end within a drain, and that outlive it."""
BEHIND = ("etcd", "kvcache-1", "placement-1", "executor", "batcher", "router")
"""Of those that only stand by while another one leads, the one that leads."""
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    settings = {"HEADRACE_DRAIN_S": f"{DRAIN_S:g}", "HEADRACE_TRACE_RATIO": "0"}
    with Mesh(executors=2, batchers=2, routers=2, admissions=2, env=settings, up=False) as running:
        begun = running.command(
            "up", "--detach", *running.arguments, "--kvcaches", "2", "--placements", "2", timeout_s=UP_TIMEOUT_S
        )
        assert begun.returncode == 0, begun.stdout + begun.stderr
        yield running


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What an undisturbed mesh says."""
    return {}


async def restarted(mesh: Mesh, loops: ClosedLoops, callers: list[Caller], *names: str) -> None:
    """Restarts these services and processes while the callers ask."""
    before = {part.name: part for part in mesh.snapshot().components}
    await loops.rehearse(caller.tokens for caller in callers)
    async with loops.running(callers):
        done = await asyncio.to_thread(mesh.command, "restart", *names, "--pause", "0.1", timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {part.name: part for part in mesh.snapshot().components}
    order = in_restart_order(names, {name: part.service for name, part in before.items()})
    assert [line.split()[0] for line in done.stdout.splitlines()] == order
    assert {name for name, part in after.items() if part.pid != before[name].pid} == set(order), "these, and no other"
    assert all(part.restarts == 0 for part in after.values()), "nothing died"
    assert not loops.failures
    assert set(loops.answered) == {str(caller) for caller in callers}


async def test_no_service_behind_admission_is_missed(mesh: Mesh, answers: Answers) -> None:
    """Answers that outlive the drain are handed back with their tokens, and go on elsewhere: the stream to the client
    stays, so that even one who never asks again sees nothing."""
    callers = [Caller(door, tokens) for door in ("plain", "generate", "session") for tokens in (SHORT, BEYOND)]
    loops = ClosedLoops(mesh.target, mesh.key, answers)
    await restarted(mesh, loops, callers, *BEHIND)
    assert not loops.resent.total()


async def test_admission_is_not_missed_either(mesh: Mesh, answers: Answers) -> None:
    """Envoy sends what is new elsewhere. What outlives the drain has to be sent again, which the SDK does."""
    callers = [Caller(door, tokens) for door in ("generate", "session") for tokens in (SHORT, BEYOND)]
    callers += [Caller("plain", SHORT), Caller("plain", SHORT), Caller("plain", WITHIN)]
    await restarted(mesh, ClosedLoops(mesh.target, mesh.key, answers), callers, "admission")


def test_what_cannot_be_restarted_is_told(mesh: Mesh) -> None:
    refused = mesh.command("restart", "router", "kitchen")
    assert refused.returncode == 1
    assert "there is no component or service 'kitchen'" in refused.stderr
    assert "router-1, router-2" in refused.stderr
