"""Four services in one process: still four services, and nobody misses one that is restarted or killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import aio

from headrace.operations.v1 import operations_pb2
from tests.system.client import Client, ask, connect, metric
from tests.system.closed_loops import Caller, ClosedLoops
from tests.system.etcd import free_ports
from tests.system.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("admission", "router", "batcher", "kvcache")
DRAIN_S = 0.8
SHORT, BEYOND = 8, 200
"""Tokens, at some 8 ms each: answers that are soon over, and that outlive a drain."""
Answers = dict[tuple[str, int], list[int]]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(executors=2, monoliths=2, env={"HEADRACE_DRAIN_S": f"{DRAIN_S:g}"}) as running:
        yield running


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What an undisturbed mesh says."""
    return {}


async def test_each_of_its_services_can_be_seen(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        answer = await client.generate(ask("simulated", "Who is there?", max_tokens=4))
        listed = await client.operations.ListServices(
            operations_pb2.ListServicesRequest(), metadata=client.metadata, timeout=10
        )
    there = {(each.service, each.instance) for each in listed.services}
    assert there >= {(service, f"monolith-{number}") for service in SERVICES for number in (1, 2)}
    assert len({each.endpoint for each in listed.services}) == len(listed.services)
    ports = [port for number in (1, 2) for port in mesh.snapshot().component(f"monolith-{number}").metrics_ports]
    assert len(ports) == 2 * len(SERVICES)
    told = [await metric(port, "headrace_process_build_info", service=name) for port in ports for name in SERVICES]
    assert sorted(told) == [0.0] * 24 + [1.0] * 8, "each page is of one service"
    trace = mesh.command("trace", answer.request_id)
    assert trace.returncode == 0, trace.stderr
    assert [stage for stage in ("admission", "router", "batcher", "executor") if stage not in trace.stdout] == []


async def test_restarted_one_by_one_under_load_nobody_misses_them(mesh: Mesh, answers: Answers) -> None:
    loops = ClosedLoops(mesh.target, mesh.key, answers)
    callers = [Caller(door, tokens) for door in ("generate", "session") for tokens in (SHORT, BEYOND)]
    callers.append(Caller("plain", SHORT))
    await loops.rehearse((SHORT, BEYOND))
    before = mesh.snapshot()
    async with loops.running(callers):
        done = await asyncio.to_thread(mesh.command, "restart", "monolith", "--pause", "0.1", timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("monolith-1", "monolith-2"):
        assert mesh.pid(name) != before.component(name).pid
        assert mesh.snapshot().component(name).restarts == 0, "it ended by itself"
    assert not loops.failures
    assert set(loops.answered) == {str(caller) for caller in callers}


async def test_killed_under_load_no_answer_is_lost_and_no_token_repeated(mesh: Mesh, answers: Answers) -> None:
    loops = ClosedLoops(mesh.target, mesh.key, answers)
    callers = [Caller(door, BEYOND) for door in ("generate", "session", "generate", "session")]
    await loops.rehearse([BEYOND])
    async with loops.running(callers):
        for name in ("monolith-1", "monolith-2"):
            await asyncio.sleep(0.5)
            mesh.kill(name)
            await asyncio.to_thread(mesh.wait_healthy)
    assert not loops.failures
    assert loops.resent.total(), "streams broke"
    assert set(loops.answered) == {str(caller) for caller in callers}


async def test_it_serves_in_one_mesh_with_services_apart(tmp_path: Path) -> None:
    """Started by hand beside a mesh, it knows all that etcd has, and both kinds use each other's batcher."""
    listen = free_ports(1)[0]
    with Mesh() as apart:
        settings = {
            "HEADRACE_INSTANCE": "by-hand", "HEADRACE_ETCD": apart.snapshot().etcd, "HEADRACE_LISTEN": "127.0.0.1:0",
            "HEADRACE_ADMISSION_LISTEN": f"127.0.0.1:{listen}", "HEADRACE_STATE_DIR": str(tmp_path),
            "HEADRACE_NOTICE_S": "0", "HEADRACE_LOG_LEVEL": "warning",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "services.monolith.main"], cwd=ROOT, env={**os.environ, **settings},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            question = ask("simulated", "Are you one?", max_tokens=16)
            async with connect(apart.target, apart.key) as client:
                expected = (await client.generate(question)).token_ids
            async with aio.insecure_channel(f"127.0.0.1:{listen}") as channel:
                async with asyncio.timeout(20):
                    await channel.channel_ready()
                assert (await Client(channel, apart.key).generate(question)).token_ids == expected
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()
            process.wait()


def test_wrong_settings_are_told_with_their_service() -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "OTEL_"))}
    common = {"HEADRACE_INSTANCE": "m", "HEADRACE_ETCD": "a:1", "HEADRACE_ROUTER_LISTEN": "127.0.0.1:0"}
    done = subprocess.run(
        [sys.executable, "-m", "services.monolith.main"], cwd=ROOT, env={**environ, **common}, capture_output=True,
        text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"headrace monolith: {service}: HEADRACE_LISTEN is not set" for service in ("admission", "batcher", "kvcache")
    ]
