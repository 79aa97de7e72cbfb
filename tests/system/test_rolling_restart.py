"""A rolling restart of every service while it is asked: nobody gets an error, and nobody another answer.

By the real command, on real processes, two of each service; Envoy, which is the door, stays.
"""

import asyncio
from collections.abc import Iterator

import pytest

from services.console.mesh.plan import RESTART_ORDER
from tests.system.closed_loops import Caller, ClosedLoops
from tests.system.mesh import UP_TIMEOUT_S, Mesh

DRAIN_S = 0.8
SHORT, WITHIN, BEYOND = 8, 40, 200
"""Tokens, at some 8 ms each: answers that are soon over, that end within a drain, and that outlive it."""
BEHIND = [service for service in RESTART_ORDER if service != "admission"]
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


async def restarted(mesh: Mesh, callers: list[Caller], *services: str) -> ClosedLoops:
    """What the callers got while each process of these services was restarted."""
    before = {part.name: part for part in mesh.snapshot().components}
    loops = ClosedLoops(mesh.target, mesh.key)
    await loops.rehearse(caller.tokens for caller in callers)
    async with loops.running(callers):
        done = await asyncio.to_thread(mesh.command, "restart", *services, "--pause", "0.3", timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {part.name: part for part in mesh.snapshot().components}
    anew = {name for name, part in before.items() if part.service in services}
    assert {name for name, part in after.items() if part.pid != before[name].pid} == anew, "these, and no other"
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(anew, key=done.stdout.index)
    assert all(part.restarts == 0 for part in after.values()), "nothing died"
    return loops


async def test_no_service_behind_admission_is_missed(mesh: Mesh) -> None:
    """Answers that outlive the drain are handed back with their tokens, and go on elsewhere: the stream to the client
    stays, so that even one who never asks again sees nothing."""
    callers = [Caller(door, tokens) for door in ("plain", "generate", "session") for tokens in (SHORT, BEYOND)]
    loops = await restarted(mesh, callers, *BEHIND)
    assert not loops.failures
    assert set(loops.answered) == {str(caller) for caller in callers}
    assert not loops.resent.total()


async def test_admission_is_not_missed_either(mesh: Mesh) -> None:
    """Envoy sends what is new elsewhere. What outlives the drain has to be sent again, which the SDK does."""
    callers = [Caller(door, tokens) for door in ("generate", "session") for tokens in (SHORT, BEYOND)]
    callers += [Caller("plain", SHORT), Caller("plain", SHORT), Caller("plain", WITHIN)]
    loops = await restarted(mesh, callers, "admission")
    assert not loops.failures
    assert set(loops.answered) == {str(caller) for caller in callers}


def test_what_cannot_be_restarted_is_told(mesh: Mesh) -> None:
    refused = mesh.command("restart", "router", "kitchen")
    assert refused.returncode == 1
    assert "there is no component or service 'kitchen'" in refused.stderr
    assert "router-1, router-2" in refused.stderr
