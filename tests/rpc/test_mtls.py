"""One setting makes every connection mTLS: who has no certificate of the mesh's CA gets nothing."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.lane.client import RemoteStage
from libs.lane.server import EXCHANGE, lane_streams, stage_service
from libs.rpc.channels import Channels
from libs.rpc.interceptors import errors
from libs.rpc.server import RpcServer
from libs.streams.client import Dialer, StreamRefused
from libs.streams.frames import PREFACE
from libs.tasks import Tasks
from tests.system.etcd import make_certificates
from tests.unit.lanes import Answers, HandStage, answer, work


def folder_of(made: Path, name: str) -> Path:
    """What `make_certificates` made, under the names that a process of the mesh reads."""
    make_certificates(made)
    for suffix in ("crt", "key"):
        shutil.copy(made / f"{name}.{suffix}", made / f"tls.{suffix}")
    return made


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("ours"), "server")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("foreign"), "server")


@asynccontextmanager
async def serving(tls_dir: Path, stage: HandStage) -> AsyncIterator[str]:
    server = RpcServer("127.0.0.1:0", [stage_service(stage)], [errors], tls_dir, lane_streams(stage))
    await server.start()
    await server.set_serving(True)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


async def check(channel: aio.Channel) -> None:
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)


async def test_processes_of_one_mesh_talk(ours: Path) -> None:
    stage, tasks, channels, answers = HandStage(), Tasks(), Channels(ours), Answers()
    async with serving(ours, stage) as endpoint:
        await check(channels.connect(endpoint))
        lane = RemoteStage(endpoint, channels.connect, Dialer(ours), tasks).open(answers)
        async with asyncio.timeout(5):
            while not lane.ready:
                await asyncio.sleep(0.01)
            lane.submit(1, work(1))
            while not stage.lane.works:
                await asyncio.sleep(0.01)
            stage.lane.run()
            while not answers.outcomes:
                await asyncio.sleep(0.01)
        assert answers.tokens[1] == answer(work(1))
        await tasks.close()
        await channels.close()


async def nobody(tls_dir: Path, endpoint: str) -> None:
    """Somebody without a certificate at a port of streams: hears nothing, and is let go."""
    context = ssl.create_default_context(cafile=str(tls_dir / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    host, _, port = endpoint.partition(":")
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(PREFACE)
        heard = b""
        with suppress(ssl.SSLError, ConnectionError):  # with TLS 1.3 the first read says so
            heard = await reader.read()
        assert not heard
        writer.close()
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("who", ["plaintext", "no certificate", "another CA"])
async def test_anyone_else_is_refused(ours: Path, foreign: Path, who: str) -> None:
    ca = (ours / "ca.crt").read_bytes()
    async with serving(ours, HandStage()) as endpoint:
        if who == "plaintext":
            channel = Channels().connect(endpoint)
        elif who == "no certificate":
            channel = aio.secure_channel(endpoint, grpc.ssl_channel_credentials(ca))
        else:
            key, chain = (foreign / "tls.key").read_bytes(), (foreign / "tls.crt").read_bytes()
            channel = aio.secure_channel(endpoint, grpc.ssl_channel_credentials(ca, key, chain))
        with pytest.raises(aio.AioRpcError) as raised:
            await check(channel)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()
        tls_dir = {"plaintext": None, "another CA": foreign}
        if who in tls_dir:
            with pytest.raises(StreamRefused):
                await Dialer(tls_dir[who]).open(endpoint, EXCHANGE)
        else:
            await nobody(ours, endpoint)


async def test_a_server_of_another_ca_is_not_believed(ours: Path, foreign: Path) -> None:
    channels = Channels(ours)
    async with serving(foreign, HandStage()) as endpoint:
        with pytest.raises(StreamRefused, match="CERTIFICATE_VERIFY_FAILED"):
            await Dialer(ours).open(endpoint, EXCHANGE)
        with pytest.raises(aio.AioRpcError) as raised:
            await check(channels.connect(endpoint))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        await channels.close()
