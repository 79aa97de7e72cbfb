"""The life of a process of the mesh: settings → server → drain, also while etcd is away."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.lane.client import RemoteStage
from libs.rpc.channels import Channels
from libs.streams.client import Dialer
from libs.tasks import Tasks
from tests.system.etcd import free_ports
from tests.unit.lanes import Answers, work

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def process(service: str, settings: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service's process with exactly these settings; killed in the end if it still runs."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "OTEL_"))}
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{service}.main", cwd=ROOT, env={**environ, **settings},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.communicate()


def executor(port: int, etcd_port: int, folder: Path, **more: str) -> dict[str, str]:
    return {
        "HEADRACE_INSTANCE": "executor-0", "HEADRACE_LISTEN": f"127.0.0.1:{port}", "HEADRACE_ENGINE": "simulated",
        "HEADRACE_ETCD": f"127.0.0.1:{etcd_port}", "HEADRACE_STATE_DIR": str(folder), "HEADRACE_DRAIN_S": "2", **more,
    }  # fmt: skip


async def serving(port: int) -> Channels:
    """Waits until the process says that it serves."""
    channels = Channels()
    async with asyncio.timeout(20):
        while True:
            try:
                stub = health_pb2_grpc.HealthStub(channels.connect(f"127.0.0.1:{port}"))
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return channels
            except aio.AioRpcError:
                pass
            await asyncio.sleep(0.05)


async def test_wrong_settings_are_told_line_by_line() -> None:
    async with process("executor", {"HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_DRAIN_S": "soon"}) as made:
        _, err = await asyncio.wait_for(made.communicate(), 20)
    assert made.returncode == 2
    lines = err.decode().splitlines()
    assert "headrace executor: HEADRACE_INSTANCE is not set" in lines
    assert "headrace executor: HEADRACE_DRAIN_S='soon' is not a number" in lines
    assert all(line.startswith("headrace executor: ") for line in lines)


@pytest.mark.parametrize("signal", [SIGTERM, SIGINT])
async def test_without_etcd_it_serves_and_ends_in_time(tmp_path: Path, signal: int) -> None:
    port, nobody = free_ports(2)
    settings = executor(port, nobody, tmp_path)
    async with process("executor", settings) as made:
        channels, tasks, answers = await serving(port), Tasks(), Answers()
        lane = RemoteStage(f"127.0.0.1:{port}", channels.connect, Dialer(), tasks).open(answers)
        async with asyncio.timeout(5):
            while not lane.ready:
                await asyncio.sleep(0.01)
            lane.submit(1, work(1))
            while not answers.outcomes:
                await asyncio.sleep(0.01)
        await tasks.close()
        await channels.close()
        made.send_signal(signal)
        await asyncio.wait_for(made.communicate(), 5)
        assert made.returncode == 0


async def test_a_port_that_is_taken_ends_it_with_an_error(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    async with process("executor", executor(port, nobody, tmp_path / "one")):
        channels = await serving(port)
        async with process("executor", executor(port, nobody, tmp_path / "two")) as second:
            _, err = await asyncio.wait_for(second.communicate(), 20)
        await channels.close()
        assert second.returncode not in (0, None)
        assert str(port) in err.decode()
