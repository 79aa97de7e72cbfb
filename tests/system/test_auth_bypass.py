"""Getting in without being let in: every way of docs/security.md, at both doors of a real mesh."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.registry import EtcdClient, Registry, keys
from tests.system import http2
from tests.system.bypasses import AUDIENCE, ISSUER, KEY, KEY_SET, NAME_OF_CERTIFICATE, SUBJECT, attempts, token
from tests.system.client import Client, ask, connect, details
from tests.system.fuzz_shots import METHODS
from tests.system.mesh import Mesh

MODEL = "simulated"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BOB = "headrace-bob-key"
TENANTS: dict[str, dict[str, object]] = {
    "alice": {"key_sha256": [sha256(KEY.encode()).hexdigest()], "certificate_names": [NAME_OF_CERTIFICATE]},
    "bob": {"key_sha256": [sha256(BOB.encode()).hexdigest()]},
    "signed": {"token_subjects": [{"issuer": "company", "subject": SUBJECT}]},
}
INNER = (KEY, sha256(KEY.encode()).hexdigest(), "alice", "spiffe", ISSUER, SUBJECT, "Traceback", "/", "etcd", "sha256")
"""What no refusal tells to who is nobody."""
LOOKALIKES = {
    "key in full-width letters": "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in KEY).encode(),
    "key with a Cyrillic letter": KEY.replace("a", "а").encode(),
    "key with a combining mark": (KEY + "\u0301").encode(),
    "key behind a byte order mark": b"\xef\xbb\xbf" + KEY.encode(),
    "key and a zero byte": KEY.encode() + b"\x00",
    "key and a line feed": KEY.encode() + b"\n",
    "key with a no-break space": b"\xa0" + KEY.encode(),
}
"""Sent as bytes: no gRPC client would."""
WITHIN_S = 1.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("policy")
    issuer = {"name": "company", "issuer": ISSUER, "audience": AUDIENCE, "key_set": KEY_SET}
    for kind, records in (("tenants", TENANTS), ("issuers", {"company": issuer})):
        (folder / kind).mkdir()
        for name, record in records.items():
            (folder / kind / f"{name}.yaml").write_text(json.dumps({"name": name, **record}))
    with Mesh(engine="simulated", envoy=True, extra_policy=folder) as running:
        yield running


@pytest.fixture
def doors(mesh: Mesh) -> dict[str, str]:
    """Through Envoy, and past it."""
    return {"envoy": mesh.target, "admission": f"127.0.0.1:{mesh.snapshot().component('admission-1').port}"}


@pytest.fixture
async def clients(doors: dict[str, str]) -> AsyncIterator[dict[str, Client]]:
    async with AsyncExitStack() as stack:
        yield {door: await stack.enter_async_context(connect(target, KEY)) for door, target in doors.items()}


@pytest.fixture
async def registry(mesh: Mesh) -> AsyncIterator[Registry]:
    async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as connected:
        yield connected


async def refusal(call: Any) -> aio.AioRpcError:
    """How a call is refused, whatever its shape."""
    with pytest.raises(aio.AioRpcError) as raised:
        await (call.read() if hasattr(call, "read") else call)
    return raised.value


async def last(call: Any) -> grpc.StatusCode:
    """How a stream ends, whatever comes before."""
    with suppress(aio.AioRpcError):
        while await call.read() is not aio.EOF:
            pass
    code: grpc.StatusCode = await call.code()
    return code


def unauthenticated(name: str, error: aio.AioRpcError) -> None:
    text, info = error.details() or "", details(error)["ErrorInfo"]
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED, f"{name}: {error.code()}: {text}"
    assert info.reason == "ERROR_REASON_CREDENTIALS_INVALID"  # type: ignore[attr-defined]
    assert 10 < len(text) < 200
    assert not [inner for inner in INNER if inner in text.replace("x-api", "")], f"{name} is told too much: {text}"


async def test_nobody_gets_in_by_any_of_these(clients: dict[str, Client]) -> None:
    said = set[str]()
    for client in clients.values():
        for attempt in attempts(time.time()):
            for call in (
                client.inference.ListModels(pb.ListModelsRequest(), metadata=attempt.metadata),
                client.inference.Generate(ask(MODEL, "x"), metadata=attempt.metadata),
            ):
                error = await refusal(call)
                unauthenticated(attempt.name, error)
                said.add(error.details() or "")
    assert len(said) >= 15, "messages say what is wrong"


async def test_bytes_that_look_like_the_key_are_not_the_key(doors: dict[str, str]) -> None:
    path = "/headrace.inference.v1.InferenceService/ListModels"

    async def call(key: bytes) -> tuple[int, str]:
        return await asyncio.to_thread(http2.call, doors["admission"], path, [(b"authorization", b"Bearer " + key)])

    assert (await call(KEY.encode()))[0] == grpc.StatusCode.OK.value[0]
    for name, value in LOOKALIKES.items():
        code, text = await call(value)
        # What is no header at all gRPC refuses by itself.
        assert code in (-1, grpc.StatusCode.UNAUTHENTICATED.value[0], grpc.StatusCode.INTERNAL.value[0]), (name, code)
        assert not [inner for inner in INNER[:5] if inner in text]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_every_call_asks_who_calls(method: Any, clients: dict[str, Client]) -> None:
    client = clients["admission"]
    service = client.inference if method.containing_service.name == "InferenceService" else client.operations
    call = getattr(service, method.name)
    request = _empty(method)
    without = call(timeout=5) if method.client_streaming else call(request, timeout=5)
    unauthenticated(method.name, await refusal(without))
    if service is client.operations:
        error = await refusal(call(request, metadata=client.metadata, timeout=5))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert error.details() == "tenant alice is not an operator"


def _empty(method: Any) -> Any:
    module = pb if method.input_type.file.package.startswith("headrace.inference") else ops
    return getattr(module, method.input_type.name)()


async def test_a_tenant_cannot_make_itself_an_operator(clients: dict[str, Client]) -> None:
    client = clients["envoy"]
    tenant = policy_pb2.Tenant(name="alice", operator=True)
    request = ops.ApplyPolicyRequest(objects=[ops.PolicyObject(tenant=tenant)])
    for local in ((), (("headrace-local", "1"),)):
        error = await refusal(client.operations.ApplyPolicy(request, metadata=(*client.metadata, *local)))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    explained = ops.ExplainRequest(request=ask(MODEL, "x"), tenant="bob")
    assert (
        (await refusal(client.operations.Explain(explained, metadata=client.metadata))).code().name.startswith("PERM")
    )


async def test_nobody_decides_for_another_tenant(clients: dict[str, Client], registry: Registry, mesh: Mesh) -> None:
    waiting = f"{'0123456789abcdef' * 2}.bob"
    await registry.put_message(keys.approval(waiting), registry_pb2.Approval(id=waiting))
    alice = clients["envoy"]
    for approval_id, code in (
        (waiting, grpc.StatusCode.PERMISSION_DENIED),
        (waiting.replace("bob", "alice"), grpc.StatusCode.NOT_FOUND),
        (waiting.removesuffix("bob"), grpc.StatusCode.NOT_FOUND),
        (f"{waiting}/../{waiting.replace('bob', 'alice')}", grpc.StatusCode.NOT_FOUND),
        (f"../tenants/{waiting}", grpc.StatusCode.NOT_FOUND),
    ):
        request = pb.ApproveRequest(approval_id=approval_id, approved=True)
        error = await refusal(alice.inference.Approve(request, metadata=alice.metadata))
        assert error.code() is code, approval_id
        assert "bob" not in (error.details() or "")
    untouched = await registry.get_message(keys.approval(waiting), registry_pb2.Approval)
    assert untouched is not None
    assert not untouched.decided_by
    async with connect(mesh.target, BOB) as bob:
        await bob.inference.Approve(pb.ApproveRequest(approval_id=waiting, approved=True), metadata=bob.metadata)


async def test_a_stream_does_not_outlive_its_key(mesh: Mesh, registry: Registry, clients: dict[str, Client]) -> None:
    name, key = "leaver", "headrace-leaver-key"
    tenant = policy_pb2.Tenant(name=name, operator=True, key_sha256=[sha256(key.encode()).hexdigest()])
    await registry.put_message(keys.tenant(name), tenant)
    async with connect(mesh.target, key) as client, asyncio.timeout(20):
        while (await client.inference.ListModels(pb.ListModelsRequest(), metadata=client.metadata).code()).value[0]:
            await asyncio.sleep(0.02)
        session = client.inference.Session(metadata=client.metadata)
        watch = client.operations.WatchPlacements(ops.WatchPlacementsRequest(), metadata=client.metadata)
        assert (await watch.read()).snapshot
        running = pb.SessionGenerate(id=1, request=ask(MODEL, "Before", max_tokens=150))
        await session.write(pb.SessionRequest(generates=[running]))
        await session.read()
        await registry.delete(keys.tenant(name))
        revoked, number, ends = time.monotonic(), 1, dict[int, pb.SessionEnd]()
        while not any(end.HasField("failure") for end in ends.values()):
            assert time.monotonic() < revoked + WITHIN_S + 0.5, "the session still takes requests"
            number += 1
            late = pb.SessionGenerate(id=number, request=ask(MODEL, "After", max_tokens=1))
            await session.write(pb.SessionRequest(generates=[late]))
            while number not in ends:
                ends.update({end.id: end for end in (await session.read()).ends})
        assert ends[number].failure.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
        await session.done_writing()
        while (message := await session.read()) is not aio.EOF:
            ends.update({end.id: end for end in message.ends})
        assert ends[1].finish.usage.output_tokens == 150, "what was let in goes on to its end"
        assert await last(watch) is grpc.StatusCode.UNAUTHENTICATED


async def test_who_is_let_in_is_let_in(clients: dict[str, Client]) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": time.time() + 60}
    for client in clients.values():
        for header in (f"Bearer {KEY}", f"bearer {KEY}", f"Bearer {token(claims)}"):
            metadata = (("authorization", header),)
            assert (await client.inference.ListModels(pb.ListModelsRequest(), metadata=metadata)).models


async def test_what_needs_no_key_tells_nothing_of_tenants(doors: dict[str, str]) -> None:
    async with aio.insecure_channel(doors["envoy"]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        assert (await refusal(health.Check(health_pb2.HealthCheckRequest(service="alice")))).code().name == "NOT_FOUND"
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        told = {each.name for each in (await asked.read()).list_services_response.service}
        asked.cancel()
        assert {name for name in told if name.startswith("headrace")} == {
            "headrace.inference.v1.InferenceService",
            "headrace.operations.v1.OperationsService",
        }
        for method in ("/headrace.lane.v1.LaneService/Exchange", "/headrace.kvcache.v1.KvCacheService/Lookup"):
            call: Any = channel.unary_unary(method)
            error = await refusal(call(b""))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, "what is between stages is not at the door"


def test_the_page_lists_them_all() -> None:
    page = PAGE.read_text()
    names = [attempt.name for attempt in attempts(time.time())] + list(LOOKALIKES)
    assert [name for name in names if name.removeprefix("token: ") not in page] == []
