"""Limits that hold for several admission processes together: over a real etcd, and through a whole mesh."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc import aio
from jwt.algorithms import OKPAlgorithm

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2
from libs.clock import SystemClock
from libs.errors import QuotaExceeded
from libs.registry import EtcdClient, Registry, keys
from services.admission.limits.exchange import EVERY_S, LimitsExchange
from services.admission.limits.limits import Limits
from services.admission.policy import Tenant
from tests.system.client import Client, ask, connect, details
from tests.system.etcd import EtcdProcess, etcd
from tests.system.mesh import Mesh

METERED = Tenant("metered", tokens_per_min=60_000, max_concurrency=6)
RATE = METERED.tokens_per_min / 60


class Door:
    """The limits of one admission process, as it has them, without the rest of it."""

    def __init__(self, name: str, registry: Registry) -> None:
        self.name = name
        self.registry = registry
        self.limits = Limits(name)
        self.exchange = LimitsExchange(registry, name, self.limits, SystemClock())

    @property
    def allowed(self) -> float:
        """Tokens per second that the tenant may have here."""
        now = time.monotonic()
        self.limits.broken(METERED, now)
        return self.limits.stats("metered", now).tokens_per_min_allowed / 60

    def ask(self, tokens: int) -> int:
        """One request, which uses all that it asks for; the tokens that got through."""
        now = time.monotonic()
        try:
            self.limits.knock(METERED, now)
            self.limits.settle(self.limits.enter(METERED, tokens, now), tokens, now)
        except QuotaExceeded:
            return 0
        return tokens


@asynccontextmanager
async def doors(member: EtcdProcess, *names: str) -> AsyncIterator[list[Door]]:
    async with AsyncExitStack() as stack:
        made = []
        for name in names:
            registry = await stack.enter_async_context(Registry(EtcdClient([member.endpoint], None)))
            door = Door(name, registry)
            await door.exchange.start()
            stack.push_async_callback(door.exchange.close)
            made.append(door)
        yield made


async def ask_for(doors: list[Door], seconds: float, per_s: Mapping[str, float], tokens: int = 20) -> int:
    """Asks at each door for so many tokens a second; what got through."""
    begun, passed = time.monotonic(), 0
    asked = dict.fromkeys(per_s, 0.0)
    while (elapsed := time.monotonic() - begun) < seconds:
        for door in doors:
            while asked.get(door.name, 0) < per_s.get(door.name, 0) * elapsed:
                asked[door.name] += tokens
                passed += door.ask(tokens)
            if int((elapsed - 0.02) / EVERY_S) != int(elapsed / EVERY_S):
                door.exchange.tick()
        await asyncio.sleep(0.02)
    return passed


async def test_shares_go_where_they_are_asked_for_and_outlive_etcd() -> None:
    async with etcd() as member, doors(member, "a", "b", "c") as (a, b, c):
        every = [a, b, c]
        async with asyncio.timeout(5):
            while [round(door.allowed) for door in every] != [333, 333, 333]:
                await asyncio.sleep(0.01)
        passed = await ask_for(every, 2.0, {"a": 10 * RATE})
        assert a.allowed > 0.97 * RATE
        assert b.allowed == c.allowed == pytest.approx(0.01 * RATE / 3, rel=0.01)
        assert 0.6 * 2 * RATE < passed < 1.05 * 2 * RATE
        await ask_for(every, 2.5, {"a": 5 * RATE, "b": 0.2 * RATE, "c": 5 * RATE})
        assert 0.15 * RATE < b.allowed < 0.25 * RATE
        assert a.allowed == pytest.approx(c.allowed, rel=0.01)
        assert sum(door.allowed for door in every) == pytest.approx(RATE, rel=0.001)
        member.kill()
        before = [door.allowed for door in every]
        await ask_for(every, 1.0, {"a": 9 * RATE})
        assert [door.allowed for door in every] == before, "nobody hears of it"
        await member.restart()
        async with asyncio.timeout(10):
            while a.allowed < 0.97 * RATE:
                await ask_for(every, 0.5, {"a": 9 * RATE})


async def test_who_is_gone_has_no_share() -> None:
    async with etcd() as member, doors(member, "a", "b") as (a, b):
        async with asyncio.timeout(5):
            while round(a.allowed) != 500:
                await asyncio.sleep(0.01)
        await b.registry.close()  # as if it had been killed: its lease runs out
        async with asyncio.timeout(10):
            while round(a.allowed) != 1000:
                await asyncio.sleep(0.05)


# --- through a whole mesh --------------------------------------------------------------------------

MODEL = "simulated"
ADMISSIONS = 3
TENANTS: dict[str, dict[str, object]] = {
    "metered": {"tokens_per_min": METERED.tokens_per_min},
    "paced": {"requests_per_s": 6},
    "narrow": {"max_concurrency": 4},
    "signed": {"token_subjects": [{"issuer": "company", "subject": "service-7"}]},
    "certified": {"certificate_names": ["spiffe://mesh/team"]},
    "plain": {"features": ["chat"]},
}
SIGNER = ed25519.Ed25519PrivateKey.generate()
ANSWER = 60


def key_set(key: ed25519.Ed25519PrivateKey) -> str:
    public = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return json.dumps({"keys": [{**public, "kid": "one"}]})


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "tenants").mkdir()
    for name, more in TENANTS.items():
        record = {"name": name, "key_sha256": [sha256(name.encode()).hexdigest()], **more}
        (folder / "tenants" / f"{name}.yaml").write_text(json.dumps(record))
    (folder / "issuers").mkdir()
    issuer = {"name": "company", "issuer": "https://id", "audience": "headrace", "key_set": key_set(SIGNER)}
    (folder / "issuers" / "company.yaml").write_text(json.dumps(issuer))
    env = {"HEADRACE_TRUST_CLIENT_CERTIFICATES": "true"}
    with Mesh(engine="simulated", admissions=ADMISSIONS, envoy=True, extra_policy=folder, env=env) as running:
        yield running


@pytest.fixture
async def registry(mesh: Mesh) -> AsyncIterator[Registry]:
    async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as connected:
        yield connected


@asynccontextmanager
async def each(mesh: Mesh, tenant: str) -> AsyncIterator[list[Client]]:
    """A client of each admission process, past Envoy."""
    async with AsyncExitStack() as stack:
        ports = [mesh.snapshot().component(f"admission-{number + 1}").port for number in range(ADMISSIONS)]
        yield [await stack.enter_async_context(connect(f"127.0.0.1:{port}", tenant)) for port in ports]


async def passed(client: Client, prompt: str, max_tokens: int = ANSWER) -> int:
    """Tokens that a request got; 0 when a limit refused it."""
    try:
        answer = await client.generate(ask(MODEL, prompt, max_tokens=max_tokens))
    except aio.AioRpcError as error:
        if "QuotaFailure" not in details(error):
            raise
        return 0
    return answer.finish.usage.prompt_tokens + answer.finish.usage.output_tokens if answer.finish else 0


async def flood(clients: list[Client], seconds: float, per_s: float, max_tokens: int = ANSWER) -> list[int]:
    """Open loop, at each client in turn; the tokens that each request got."""
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[int]] = []
        while (elapsed := time.monotonic() - begun) < seconds:
            while len(tasks) < per_s * elapsed:
                number = len(tasks)
                client = clients[number % len(clients)]
                tasks.append(group.create_task(passed(client, f"Flood {number:05}", max_tokens)))
            await asyncio.sleep(0.01)
    return [task.result() for task in tasks]


async def test_three_processes_let_through_what_one_limit_allows(mesh: Mesh) -> None:
    seconds = 4.0
    async with connect(mesh.target, "metered") as client, connect(mesh.target, mesh.key) as operator:
        flooding = asyncio.create_task(flood([client], seconds, 60.0))
        seen: list[ops.Usage] = []
        while not flooding.done():
            await asyncio.sleep(0.2)
            usage = await operator.operations.ListUsage(ops.ListUsageRequest(), metadata=operator.metadata)
            seen += [each for each in usage.usages if each.tenant == "metered"]
        got = await flooding
        most = max(got)
        assert most > ANSWER
        through = sum(got) / (RATE * seconds)
        # Buckets are empty at first, and each process may have passed its share by one request.
        assert 0.9 < through < 1.03 + ADMISSIONS * most / (RATE * seconds)
        assert seen[-1].refused > 0
        assert max(each.tokens_per_min for each in seen) > METERED.tokens_per_min / ADMISSIONS


async def test_a_refusal_says_which_limit_and_when_to_come_back(mesh: Mesh) -> None:
    async with each(mesh, "metered") as (client, *_):
        await asyncio.sleep(1.0)
        long = asyncio.create_task(passed(client, "Long", 1500))
        await asyncio.sleep(0.3)
        with pytest.raises(aio.AioRpcError) as raised:
            await client.generate(ask(MODEL, "Short", max_tokens=1))
        long.cancel()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found: dict[str, Any] = dict(details(raised.value))
        assert found["ErrorInfo"].reason == "ERROR_REASON_QUOTA_EXCEEDED"
        assert found["ErrorInfo"].metadata["limits"] == "tokens_per_min"
        assert [v.subject for v in found["QuotaFailure"].violations] == ["tenant/metered/tokens_per_min"]
        assert 0.5 < found["RetryInfo"].retry_delay.ToMicroseconds() / 1e6 < 30
        # The long one was cancelled: what it did not use is given back, and the next may come sooner than that.
        async with asyncio.timeout(5):
            while not await passed(client, "Short", 1):
                await asyncio.sleep(0.05)


async def test_requests_per_second_over_all_processes(mesh: Mesh) -> None:
    async with each(mesh, "paced") as clients:
        got = await flood(clients, 2.0, 40.0, max_tokens=1)
        # Six a second; at first one second's worth of each share, and one that each process may begin with.
        assert 10 <= sum(tokens > 0 for tokens in got) <= 6 * 2 + 6 + ADMISSIONS


async def test_requests_in_flight_over_all_processes(mesh: Mesh) -> None:
    async with each(mesh, "narrow") as clients, connect(mesh.target, mesh.key) as operator:
        most = 0
        tasks = [asyncio.create_task(flood([client], 1.5, 20.0, 30)) for client in clients]
        while not all(task.done() for task in tasks):
            usages = [
                await client.operations.ListUsage(ops.ListUsageRequest(), metadata=operator.metadata)
                for client in clients
            ]
            running = [u.running for usage in usages for u in usage.usages if u.tenant == "narrow"]
            most = max(most, sum(running))
            await asyncio.sleep(0.02)
        got = [tokens for task in tasks for tokens in task.result()]
        assert sum(tokens > 0 for tokens in got) >= 6
        assert 3 <= most <= 4


async def answers(client: Client, *metadata: tuple[str, str]) -> bool:
    """Whether a client may come in, with metadata of its own or with these."""
    call = client.inference.ListModels(pb.ListModelsRequest(), metadata=metadata or client.metadata)
    if (code := await call.code()) is not grpc.StatusCode.OK:
        assert code is grpc.StatusCode.UNAUTHENTICATED, await call.details()
    return code is grpc.StatusCode.OK


async def test_a_token_names_its_tenant(mesh: Mesh, registry: Registry) -> None:
    claims = {"iss": "https://id", "aud": "headrace", "sub": "service-7", "exp": time.time() + 60}
    token = jwt.encode(claims, SIGNER, "EdDSA", headers={"kid": "one"})
    stolen = jwt.encode({**claims, "aud": "elsewhere"}, SIGNER, "EdDSA", headers={"kid": "one"})
    async with connect(mesh.target, token) as client, connect(mesh.target, stolen) as thief:
        assert await answers(client)
        assert not await answers(thief)
        turned = policy_pb2.TokenIssuer(
            name="company", issuer="https://id", audience="headrace",
            key_set=key_set(ed25519.Ed25519PrivateKey.generate()),
        )  # fmt: skip
        await registry.put_message(keys.issuer("company"), turned)
        async with asyncio.timeout(1):  # although it was good a moment ago, and is remembered
            while await answers(client):
                await asyncio.sleep(0.01)


async def test_a_certificate_is_envoys_to_tell(mesh: Mesh) -> None:
    told = ("x-forwarded-client-cert", "By=envoy;URI=spiffe://mesh/team")
    async with connect(mesh.target, "") as outside, each(mesh, "") as (inside, *_):
        assert not await answers(outside, told), "Envoy takes away what clients claim"
        assert await answers(inside, told), "as Envoy says it"


async def test_what_a_client_says_twice_is_not_believed(mesh: Mesh) -> None:
    async with connect(mesh.target, "plain") as client:
        assert await answers(client)
        good, bad = client.metadata[0], ("authorization", "Bearer guess")
        assert not await answers(client, good, bad)
        assert not await answers(client, bad, good)


async def test_features_of_a_tenant_and_of_the_mesh(mesh: Mesh, registry: Registry) -> None:
    turns = pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, content="x")])
    chat = pb.GenerateRequest(model=MODEL, chat=turns, sampling=pb.Sampling(max_tokens=2))
    async with connect(mesh.target, "plain") as client:
        await client.generate(chat)
        [ended], _ = await client.session([chat])
        assert ended.failure is not None
        assert "may not use session" in ended.failure.message
        key = keys.switch("feature", "chat")
        await registry.put_message(
            key, policy_pb2.Switch(kind=policy_pb2.SWITCH_KIND_FEATURE, name="chat", reason="it hangs")
        )
        with pytest.raises(aio.AioRpcError) as raised:
            await until_refused(client, chat, 1)
        await registry.delete(key)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "chat is switched off: it hangs" in (raised.value.details() or "")


async def until_refused(client: Client, request: pb.GenerateRequest, within_s: float) -> None:
    """Raises what it is refused with."""
    async with asyncio.timeout(within_s):
        while True:
            await client.generate(request)
