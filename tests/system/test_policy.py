"""Rules of tenants and pins, through the whole mesh, as processes with the simulated engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2
from libs.registry import EtcdClient, Registry, keys
from tests.system.client import Client, ask, connect, details
from tests.system.mesh import Mesh

MODEL = "simulated"
TENANTS = {"open": "", "other": "weight: 2.5", "shut": "isolated: true", "sealed": "isolated: true"}
PROMPT = "The depth of the river at the mill, every day of the year: " * 8
SYSTEM = "You are the miller. You answer in one sentence, and you never speak of the flood. " * 8
BLOCK = 32


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "tenants").mkdir()
    for name, more in TENANTS.items():
        digest = sha256(name.encode()).hexdigest()
        (folder / "tenants" / f"{name}.yaml").write_text(f"name: {name}\nkey_sha256: [{digest}]\n{more}\n")
    env = {"HEADRACE_STEP_TOKENS": "512"}
    with Mesh(engine="simulated", executors=1, envoy=False, extra_policy=folder, env=env) as running:
        yield running


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """The operator's."""
    async with connect(mesh.target, mesh.key) as connected:
        yield connected


@pytest.fixture
async def registry(mesh: Mesh) -> AsyncIterator[Registry]:
    async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as connected:
        yield connected


async def cached(mesh: Mesh, tenant: str, prompt: str = PROMPT) -> int:
    """Tokens of the prompt that a tenant finds computed."""
    async with connect(mesh.target, tenant) as client:
        answer = await client.generate(ask(MODEL, prompt, max_tokens=2))
    assert answer.finish is not None
    return answer.finish.usage.cached_tokens


async def test_tenants_share_a_cache_unless_they_are_isolated(mesh: Mesh) -> None:
    assert await cached(mesh, "open") == 0
    shared = await cached(mesh, "other")
    assert shared >= BLOCK
    assert await cached(mesh, "shut") == 0
    assert await cached(mesh, "shut") == shared, "it finds its own"
    assert await cached(mesh, "sealed") == 0
    assert await cached(mesh, "open") == shared


async def test_an_executor_says_how_much_its_steps_compute(client: Client) -> None:
    executors = await client.operations.ListExecutors(ops.ListExecutorsRequest(), metadata=client.metadata)
    [[copy]] = [executor.models for executor in executors.executors]
    assert (copy.model, copy.step_tokens) == (MODEL, 512), "HEADRACE_STEP_TOKENS, not the catalogue's 2048"


async def refused(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return raised.value


def system(text: str) -> pb.Chat:
    return pb.Chat(messages=[pb.Message(role=pb.ROLE_SYSTEM, content=text)])


async def pin(client: Client, name: str, **fields: Any) -> ops.PinnedPrefix:
    request = ops.PinPrefixRequest(name=name, **{"model": MODEL, **fields})
    pinned: ops.PinnedPrefix = (await client.operations.PinPrefix(request, metadata=client.metadata)).pin
    return pinned


async def pinned(client: Client, **fields: Any) -> list[str]:
    answer = await client.operations.ListPins(ops.ListPinsRequest(**fields), metadata=client.metadata)
    return [each.name for each in answer.pins] + ([answer.next_page_token] if answer.next_page_token else [])


async def test_a_system_prompt_is_pinned_as_the_model_reads_it(client: Client, registry: Registry) -> None:
    told = await pin(client, "miller", chat=system(SYSTEM), tenant="shut", copies=2)
    stored = await registry.get_message(keys.pin("miller"), policy_pb2.Pin)
    assert stored is not None
    assert (stored.name, stored.model, stored.tenant, stored.copies) == ("miller", MODEL, "shut", 2)
    assert told.tokens == len(stored.token_ids) > 3 * BLOCK
    assert told.blocks == told.tokens // BLOCK
    chat = system(SYSTEM)
    chat.messages.add(role=pb.ROLE_USER, content="How deep is it?")
    request = pb.CountTokensRequest(model=MODEL, chat=chat)
    whole = await client.inference.CountTokens(request, metadata=client.metadata)
    assert told.tokens < whole.tokens < told.tokens + 20
    again = await pin(client, "miller", chat=system(SYSTEM), tenant="shut", copies=2)
    assert again.revision == told.revision, "what is as it is to be is not written"
    other = await pin(client, "miller", prompt=SYSTEM, expected_revision=told.revision)
    assert other.revision > told.revision
    await client.operations.UnpinPrefix(ops.UnpinPrefixRequest(name="miller"), metadata=client.metadata)
    assert await registry.get_message(keys.pin("miller"), policy_pb2.Pin) is None


async def test_every_fault_of_a_pin_is_told(client: Client) -> None:
    error = await refused(pin(client, "No Name", model="smolm2", chat=pb.Chat(), tenant="nobody", copies=20_000))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = details(error)["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    fields = [violation.field for violation in bad.field_violations]
    assert sorted(fields) == ["chat.messages", "copies", "model", "name", "tenant"]
    for wrong, field in (
        ({"prompt": "Too short to fill a block"}, "prompt"),
        ({"chat": system("x " * 20_000)}, "chat"),
        ({}, "input"),
        ({"prompt": PROMPT, "tenant": "open"}, "tenant"),
        ({"prompt": "x" * 1_000_001}, "prompt"),
    ):
        bad = details(await refused(pin(client, "wrong", **wrong)))["BadRequest"]
        assert isinstance(bad, error_details_pb2.BadRequest)
        assert [violation.field for violation in bad.field_violations] == [field]
    assert await pinned(client) == []


async def test_two_operators_do_not_overwrite_each_other(client: Client) -> None:
    first = await pin(client, "both", prompt=PROMPT, expected_revision=0)
    late = await refused(pin(client, "both", prompt=SYSTEM, expected_revision=0))
    assert late.code() is grpc.StatusCode.ABORTED
    assert f"is at revision {first.revision}" in str(late.details())
    second = await pin(client, "both", prompt=SYSTEM, expected_revision=first.revision)
    wrong = ops.UnpinPrefixRequest(name="both", expected_revision=first.revision)
    error = await refused(client.operations.UnpinPrefix(wrong, metadata=client.metadata))
    assert error.code() is grpc.StatusCode.ABORTED
    right = ops.UnpinPrefixRequest(name="both", expected_revision=second.revision)
    await client.operations.UnpinPrefix(right, metadata=client.metadata)
    gone = await refused(client.operations.UnpinPrefix(right, metadata=client.metadata))
    assert gone.code() is grpc.StatusCode.NOT_FOUND
    info = details(gone)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.reason == "ERROR_REASON_PIN_UNKNOWN"


async def test_of_those_who_write_at_once_one_is_first(client: Client) -> None:
    tries = [pin(client, "race", prompt=f"{number} {PROMPT}", expected_revision=0) for number in range(6)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    lost = [error for error in results if isinstance(error, aio.AioRpcError)]
    assert len(lost) == 5
    assert {error.code() for error in lost} == {grpc.StatusCode.ABORTED}
    await client.operations.UnpinPrefix(ops.UnpinPrefixRequest(name="race"), metadata=client.metadata)


async def test_pins_come_in_pages_and_only_operators_see_them(client: Client, mesh: Mesh) -> None:
    for name in ("c", "a", "b"):
        await pin(client, name, prompt=PROMPT)
    assert await pinned(client, page_size=2) == ["a", "b", "2"]
    assert await pinned(client, page_size=2, page_token="2") == ["c"]
    async with connect(mesh.target, "open") as other:
        assert (await refused(pinned(other))).code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await refused(pin(other, "d", prompt=PROMPT))).code() is grpc.StatusCode.PERMISSION_DENIED
    for name in ("a", "b", "c"):
        await client.operations.UnpinPrefix(ops.UnpinPrefixRequest(name=name), metadata=client.metadata)


def test_pins_from_the_command_line(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text(SYSTEM)
    made = mesh.command("pin", "desk", "--model", MODEL, "--system-file", str(file), "--copies", "1")
    assert made.returncode == 0, made.stderr
    assert "desk pinned: " in made.stdout
    assert f"blocks of {MODEL} on 1 executors" in made.stdout
    shown = mesh.command("pins")
    assert "desk" in shown.stdout
    stale = mesh.command("unpin", "desk", "--revision", "1")
    assert stale.returncode == 1
    assert "somebody else changed it meanwhile" in stale.stderr
    assert "not pinned any more" in mesh.command("unpin", "desk").stdout
    assert "nothing is pinned" in mesh.command("pins").stdout
    both = mesh.command("pin", "desk", "--model", MODEL)
    assert both.returncode == 2
