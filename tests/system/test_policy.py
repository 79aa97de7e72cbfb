"""Rules of all kinds, through the whole mesh, as processes with the simulated engine: two of admission, two routers.

Rules are written with the real grpcurl, and Explain is asked of each process until it acts by them.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
from services.console.mesh.parts import POLICY_DIR
from tests.system.client import Client, ask, connect, details
from tests.system.mesh import Mesh

MODEL = "simulated"
TENANTS = {"open": "", "other": "weight: 2.5", "shut": "isolated: true", "sealed": "isolated: true"}
PROMPT = "The depth of the river at the mill, every day of the year: " * 8
SYSTEM = "You are the miller. You answer in one sentence, and you never speak of the flood. " * 8
BLOCK = 32
SECOND = (POLICY_DIR / "models/simulated.yaml").read_text().replace(f"name: {MODEL}", "name: second")
ADMISSIONS = ROUTERS = 2
GRPCURL = str(Path(sys.executable).parent / "grpcurl")
GRPCURL_ERRORS = 64
"""grpcurl exits with this plus the gRPC code."""
WITHIN_S = 1.0
"""What a change of the rules takes, at most, to be in force everywhere."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "tenants").mkdir()
    for name, more in TENANTS.items():
        digest = sha256(name.encode()).hexdigest()
        (folder / "tenants" / f"{name}.yaml").write_text(f"name: {name}\nkey_sha256: [{digest}]\n{more}\n")
    (folder / "models").mkdir()
    (folder / "models/second.yaml").write_text(SECOND)
    env = {"HEADRACE_STEP_TOKENS": "512"}
    with Mesh(admissions=ADMISSIONS, routers=ROUTERS, envoy=False, extra_policy=folder, env=env) as running:
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
    [copy] = [each for executor in executors.executors for each in executor.models if each.model == MODEL]
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


@dataclass(frozen=True)
class Ran:
    """What came of a call with grpcurl."""

    code: int
    out: str
    err: str
    began: float
    """Monotonic seconds."""

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


async def grpcurl(mesh: Mesh, method: str, request: object, key: str = "") -> Ran:
    """Calls OperationsService as an operator at a terminal does."""
    began = time.monotonic()
    words = ["-plaintext", "-H", f"authorization: Bearer {key or mesh.key}", "-d", json.dumps(request), mesh.target]
    process = await asyncio.create_subprocess_exec(
        GRPCURL, *words, f"headrace.operations.v1.OperationsService/{method}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return Ran(process.returncode or 0, out.decode(), err.decode(), began)


@pytest.fixture
async def doors(client: Client, mesh: Mesh) -> AsyncIterator[list[Client]]:
    """The operator's way into each process of admission."""
    services = await client.operations.ListServices(ops.ListServicesRequest(), metadata=client.metadata)
    endpoints = [each.endpoint for each in services.services if each.service == "admission"]
    assert len(endpoints) == ADMISSIONS
    assert len([each for each in services.services if each.service == "router"]) == ROUTERS
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(endpoint, mesh.key)) for endpoint in endpoints]


Say = Callable[[Client], Awaitable[str]]
"""What is asked of a process of admission, and comes back."""


def explained(model: str, tenant: str = "", **fields: Any) -> Say:
    """What the stages say: "admission admit: …; router pool second@…: …"."""

    async def say(door: Client) -> str:
        request = ops.ExplainRequest(request=ask(model, "How deep is it?", **fields), tenant=tenant)
        answer = await door.operations.Explain(request, metadata=door.metadata)
        return "; ".join(f"{each.stage} {each.choice}: {each.reason}" for each in answer.decisions)

    return say


def let_in(tenant: str) -> Say:
    """Why a tenant is not let in; "" if it is."""

    async def say(door: Client) -> str:
        try:
            key = (("authorization", f"Bearer {tenant}"),)
            await door.inference.ListModels(pb.ListModelsRequest(), metadata=key)
        except aio.AioRpcError as error:
            return f"refuse: {error.code().name} {error.details()}"
        return ""

    return say


async def everywhere(doors: Sequence[Client], say: Say, holds: Callable[[str], bool]) -> float:
    """When the last process of admission, and the last router behind it, acted by a rule; monotonic seconds.

    Admission asks the routers in turn: as many questions in a row as there are routers reach each of them.
    """

    async def at(door: Client) -> float:
        async with asyncio.timeout(10):
            while True:
                if all([holds(await say(door)) for _ in range(ROUTERS)]):
                    return time.monotonic()
                await asyncio.sleep(0.01)

    return max(await asyncio.gather(*map(at, doors)))


async def test_a_rule_written_with_grpcurl_is_in_force_everywhere_within_a_second(
    doors: list[Client], mesh: Mesh
) -> None:
    times = []
    for model, prompt_tokens in ((MODEL, 100), ("second", 1), (MODEL, 0)):
        tenant = {"name": "open", "max_prompt_tokens": prompt_tokens}
        rules = [{"route": {"alias": "mill", "model": model}}, {"tenant": tenant}]

        def changed(said: str, model: str = model) -> bool:
            return f"pool {model}@" in said

        def refused(said: str, prompt_tokens: int = prompt_tokens) -> bool:
            return ("at most 1 are allowed" in said) == (prompt_tokens == 1)

        ran, routed, limited = await asyncio.gather(
            grpcurl(mesh, "ApplyPolicy", {"objects": rules}),
            everywhere(doors, explained("mill"), changed),
            everywhere(doors, explained(MODEL, "open"), refused),
        )
        assert ran.json["changed"] == ["/headrace/v1/policies/routes/mill", "/headrace/v1/policies/tenants/open"]
        times.append(max(routed, limited) - ran.began)
    assert max(times) < WITHIN_S, f"in force everywhere {times} s after grpcurl was started"
    assert (await grpcurl(mesh, "DeletePolicy", {"kind": "routes", "name": "mill"})).code == 0


async def test_rules_are_written_all_or_none(client: Client, mesh: Mesh) -> None:
    objects = [
        {"breaker": {"name": MODEL, "probes": 2}},
        {"tool": {"name": "depth", "description": "x", "arguments_schema": '{"type": "object"}', "url": "http://a"}},
        {"contract": {"name": "report", "tools": [{"tool": "dept", "retries": 1}], "repairs": 9}},
    ]
    before = await kept(client)
    assert {"route default", "tenant open", "tenant dev", "tier TIER_ASYNC"} <= set(before)
    ran = await grpcurl(mesh, "ApplyPolicy", {"objects": objects})
    assert ran.code == GRPCURL_ERRORS + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for said in (
        "objects[2].contract.tools[0].tool: there is no 'dept'; did you mean 'depth'?",
        "objects[2].contract.repairs: 9",
    ):
        assert said in ran.err
    objects[2] = {"contract": {"name": "report", "tools": [{"tool": "depth"}]}}
    dry = await grpcurl(mesh, "ApplyPolicy", {"objects": objects, "dry_run": True})
    assert len(dry.json["changed"]) == 3
    assert await kept(client) == before
    assert (await grpcurl(mesh, "ApplyPolicy", {"objects": objects})).json == dry.json
    assert (await grpcurl(mesh, "ApplyPolicy", {"objects": objects})).json == {}, "nothing differs any more"
    after = await kept(client)
    assert set(after) - set(before) == {f"breaker {MODEL}", "contract report", "tool depth"}
    assert await kept(client, "contracts") == ["contract report"]
    assert await kept(client, page_size=2, page_token="2") == after[2:4]
    needed = await refused(delete(client, "tools", "depth"))
    assert needed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the contract 'report' names it (tools[0].tool)" in str(needed.details())
    for kind, name in (("contracts", "report"), ("tools", "depth"), ("breakers", MODEL)):
        await delete(client, kind, name)
    gone = await refused(delete(client, "breakers", MODEL))
    assert gone.code() is grpc.StatusCode.NOT_FOUND


async def kept(client: Client, kind: str = "", **fields: Any) -> list[str]:
    """The rules that are there: "tenant open"."""
    request = ops.ListPoliciesRequest(kind=kind, **fields)
    answer = await client.operations.ListPolicies(request, metadata=client.metadata)
    assert not any(each.tenant.key_sha256 for each in answer.objects)
    found = [(each.WhichOneof("object"), getattr(each, each.WhichOneof("object"))) for each in answer.objects]
    tier = pb.Tier.Name
    return [
        f"{field} {tier(each.tier) if field == 'tier' else getattr(each, 'alias' if field == 'route' else 'name')}"
        for field, each in found
    ]


async def delete(client: Client, kind: str, name: str) -> None:
    await client.operations.DeletePolicy(ops.DeletePolicyRequest(kind=kind, name=name), metadata=client.metadata)


async def apply(client: Client, *objects: ops.PolicyObject, **fields: Any) -> list[str]:
    request = ops.ApplyPolicyRequest(objects=objects, **fields)
    answer = await client.operations.ApplyPolicy(request, metadata=client.metadata)
    return list(answer.changed)


def tenant(name: str, **fields: Any) -> ops.PolicyObject:
    return ops.PolicyObject(tenant=policy_pb2.Tenant(name=name, **fields))


async def test_a_tenant_keeps_its_keys_and_the_mesh_its_operator(
    client: Client, mesh: Mesh, registry: Registry
) -> None:
    assert await apply(client, tenant("open", weight=3)) == [keys.tenant("open")]
    stored = await registry.get_message(keys.tenant("open"), policy_pb2.Tenant)
    assert stored is not None
    assert stored.key_sha256 == [sha256(b"open").hexdigest()]
    assert stored.weight == 3
    locked_out = await refused(apply(client, tenant("dev")))
    assert "objects: then no tenant would be an operator any more" in str(locked_out.details())
    assert "then no tenant would be an operator" in str((await refused(delete(client, "tenants", "dev"))).details())
    async with connect(mesh.target, "open") as other:
        for call in (apply(other, tenant("open")), kept(other), delete(other, "tenants", "open")):
            assert (await refused(call)).code() is grpc.StatusCode.PERMISSION_DENIED
    await apply(client, tenant("open"))


async def test_every_fault_of_a_call_is_told(client: Client) -> None:
    for objects, field in (
        ([], "objects"),
        ([ops.PolicyObject()], "objects[0]"),
        ([tenant(f"t{i}", key_sha256=["a" * 64]) for i in range(61)], "objects"),
        ([tenant("x y")], "objects[0].tenant.name"),
        ([tenant("new", weight=float("nan"), certificate_names=["new"])], "objects[0].tenant.weight"),
        ([tenant("new", default_tier=7, certificate_names=["new"])], "objects[0].tenant.default_tier"),
        ([tenant("new", certificate_names=["new"])] * 2, "objects[1].tenant.name"),
    ):
        bad = details(await refused(apply(client, *objects)))["BadRequest"]
        assert isinstance(bad, error_details_pb2.BadRequest)
        assert field in [violation.field for violation in bad.field_violations]
    for kind, name, field in (("switches", "x", "kind"), ("tenants", "a/b", "name"), ("", "", "kind")):
        bad = details(await refused(delete(client, kind, name)))["BadRequest"]
        assert isinstance(bad, error_details_pb2.BadRequest)
        assert [violation.field for violation in bad.field_violations] == [field]
    assert (await refused(kept(client, "tenant"))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_those_who_write_at_once_all_write(doors: list[Client]) -> None:
    names = [f"at-once-{number}" for number in range(6)]
    made = [tenant(name, certificate_names=[name]) for name in names]
    written = await asyncio.gather(*(apply(doors[i % ADMISSIONS], each) for i, each in enumerate(made)))
    assert [key for changed in written for key in changed] == [keys.tenant(name) for name in names]
    same = [tenant(f"same-{number}", certificate_names=["same"]) for number in range(6)]
    results = await asyncio.gather(
        *(apply(doors[i % ADMISSIONS], each) for i, each in enumerate(same)), return_exceptions=True
    )
    lost = [error for error in results if isinstance(error, aio.AioRpcError)]
    assert len(lost) == 5, "each was judged together with those that came before"
    assert {error.code() for error in lost} == {grpc.StatusCode.INVALID_ARGUMENT}
    first = next(each.tenant.name for each, result in zip(same, results, strict=True) if isinstance(result, list))
    for name in (*names, first):
        await delete(doors[0], "tenants", name)


@pytest.mark.parametrize(
    ("kind", "name", "say"),
    [
        ("MODEL", "second", explained("second")),
        ("TENANT", "open", let_in("open")),
        ("FEATURE", "log_probs", explained(MODEL, log_probs=True)),
    ],
)
async def test_a_kill_switch_is_in_force_everywhere_within_a_second(
    doors: list[Client], mesh: Mesh, kind: str, name: str, say: Say
) -> None:
    switch = {"kind": f"SWITCH_KIND_{kind}", "name": name, "reason": "the flood"}
    for method, request, off in (
        ("PutSwitch", {"switch": switch}, True),
        ("DeleteSwitch", {"kind": switch["kind"], "name": name}, False),
    ):

        def holds(said: str, off: bool = off) -> bool:
            return ("refuse" in said and "the flood" in said) == off

        ran, last = await asyncio.gather(grpcurl(mesh, method, request), everywhere(doors, say, holds))
        assert ran.code == 0, ran.err
        assert last - ran.began < WITHIN_S


async def test_a_switch_for_what_is_none_is_refused(mesh: Mesh) -> None:
    ran = await grpcurl(mesh, "PutSwitch", {"switch": {"kind": "SWITCH_KIND_FEATURE", "name": "hedgin"}})
    assert ran.code == GRPCURL_ERRORS + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "did you mean 'hedging'?" in ran.err
    assert "switch.reason: is required" in ran.err


def test_rules_from_the_command_line(mesh: Mesh) -> None:
    on = mesh.command("switch", "on", "feature", "hedging", "--reason", "the flood")
    assert "feature hedging is switched off: the flood" in on.stdout, on.stderr
    assert "hedging" in mesh.command("switch", "list").stdout
    assert "feature hedging is on again" in mesh.command("switch", "off", "feature", "hedging").stdout
    assert "nothing is switched off" in mesh.command("switch", "list").stdout
    rules = json.loads(mesh.command("policy", "list", "routes", "--json").stdout)
    assert rules == [{"route": {"alias": "default", "model": "smollm2"}}]
    said = mesh.command("explain", "How deep is it?", "--model", MODEL, "--tenant", "open").stdout
    assert "admit" in said
    assert f"pool {MODEL}@" in said
    unknown = json.loads(mesh.command("explain", "x", "--model", "nobody", "--json").stdout)
    assert unknown[0]["choice"] == "refuse: MODEL_UNKNOWN"
    found = {each["tenant"]: each for each in json.loads(mesh.command("tenants", "--json").stdout)}
    assert found["open"]["requests"] >= 2
    assert found["reader"]["running_limit"] == 16
