"""Routes over real lanes: admission's forwarder → router → batcher → executor."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from msgspec import structs

from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from libs.catalogue import ModelSpec, Simulation, model_of
from libs.clock import SystemClock
from libs.errors import Rerouted
from libs.lane.forwarder import Forwarder, ForwarderLane
from libs.lane.work import Asked, Note, Work
from libs.telemetry.metrics import Metrics
from services.router.observe import Observer
from services.router.policy import Cascade, Fallback, Hedge, RouteRules, Shadow
from services.router.route import Catalogue, PoolState
from services.router.stage import Router
from tests.rpc.chain import Answers, Chain, Served, chain, reference, served, spec, work

QUICK = spec(name="quick", simulation=Simulation(step_base_us=2000.0, seed=1))
GOOD = spec(name="good", simulation=Simulation(step_base_us=2000.0, seed=2))
SLOW = spec(name="slow", simulation=Simulation(step_base_us=400_000.0, seed=3))
FOREIGN = spec(name="foreign", tokenizer="package:other", simulation=Simulation(step_base_us=2000.0, seed=4))
MODELS = (QUICK, GOOD, SLOW, FOREIGN)


class Texts:
    """A text that names its model."""

    def text(self, model: str, tokens: Sequence[int]) -> str | None:
        return f"{model} {len(tokens)}"


class Restarting(Answers):
    """Hears of answers that begin anew."""

    restarts = 0

    def on_note(self, work_id: int, note: Note) -> None:
        if note.restart:
            self.restarts += 1
            self.tokens[work_id] = []
        super().on_note(work_id, note)


@dataclass
class Mesh:
    """A chain, its router behind a port, and admission's way to it."""

    chain: Chain
    router: Router
    served: Served
    lane: ForwarderLane
    answers: Restarting

    async def ask(self, *works: Work) -> None:
        """Until all of them have ended."""
        for number, one in enumerate(works):
            self.lane.submit(number, one)
        await self.answers.until(lambda answers: len(answers.outcomes) == len(works))


def asked(index: int = 0, tokens: int = 20, **changes: object) -> Work:
    made = Asked("r", "quick")
    return work(index, tokens=tokens, model="r", pool="", asked=structs.replace(made, **changes))


@asynccontextmanager
async def mesh(route: RouteRules, down: Sequence[ModelSpec] = ()) -> AsyncIterator[Mesh]:
    """Every model on every executor, but those that are down."""
    up = [model for model in MODELS if model not in down]
    async with chain(model=up[0], versions=up[1:]) as made:
        now = SystemClock().monotonic()
        known = Catalogue(
            models={model.name: model for model in MODELS},
            aliases={"r": route.model},
            routes={"r": route},
            pools={model.pool: PoolState(1, 0, now) for model in MODELS},
        )
        router = Router(
            made.forwarder, lambda: known, made.tracing, Observer(Metrics("router", "r", "0")), SystemClock(),
            instance="router-0", texts=Texts(),
            judge=lambda text, mean, schema, patterns, least: "it refuses" if text.startswith("quick") else None,
        )  # fmt: skip
        behind = await served(router)
        answers = Restarting()
        front = Forwarder("admission", lambda work, ready: ready[0], SystemClock())
        front.set_neighbours({"router-0": made.remote(behind)})

        async def tick() -> None:
            while True:
                router.tick()
                await asyncio.sleep(0.01)

        made.tasks.spawn(tick(), "tick the router")
        try:
            yield Mesh(made, router, behind, front.open(answers), answers)
        finally:
            front.close()
            await behind.cut()


async def answer_of(model: ModelSpec, *works: Work) -> list[list[int]]:
    return await reference([structs.replace(one, model=model.name, pool=model.pool) for one in works], model)


async def test_a_streamed_answer_in_doubt_begins_anew_over_the_wire() -> None:
    works = [asked(index, tokens=10 + index) for index in range(12)]
    expected = await answer_of(GOOD, *works)
    route = RouteRules("r", "good", cascade=Cascade(("quick", "good"), stream_first=True))
    async with mesh(route) as it:
        await it.ask(*works)
        assert [it.answers.tokens[number] for number in range(12)] == expected
        assert it.answers.restarts == 12
        assert {it.answers.notes[number][-1].tried for number in range(12)} == {("quick",)}
        assert all(outcome.error is None for outcome in it.answers.outcomes.values())


async def test_a_kept_answer_passes_whole_or_not_at_all() -> None:
    works = [asked(index) for index in range(4)]
    good, quick = await answer_of(GOOD, *works), await answer_of(QUICK, *works)
    route = RouteRules("r", "good", cascade=Cascade(("quick", "good")))
    async with mesh(route) as it:
        await it.ask(*works)
        assert [it.answers.tokens[number] for number in range(4)] == good
        assert it.answers.restarts == 0
    async with mesh(replace(route, cascade=Cascade(("good", "quick")))) as it:
        await it.ask(*works)
        assert [it.answers.tokens[number] for number in range(4)] == good
    async with mesh(route, down=[GOOD]) as it:
        it.lane.submit(0, works[0])
        await it.answers.until(lambda answers: answers.notes.get(0))
        assert 0 not in it.answers.tokens
    assert quick != good


async def test_a_slow_model_is_hedged() -> None:
    route = RouteRules("r", "slow", hedge=Hedge(quantile=0.5, max_share=1.0, model="quick"))
    async with mesh(route) as it:
        hedging = it.router._context.hedging("r")
        for _ in range(30):
            hedging.answered(0.05, SystemClock().monotonic())
        works = [asked(index, tokens=5) for index in range(6)]
        await it.ask(*works)
        assert [it.answers.tokens[number] for number in range(6)] == await answer_of(QUICK, *works)
        assert {model_of(it.answers.notes[number][-1].pool) for number in range(6)} == {"quick"}
        assert it.chain.forwarder.in_flight == 0


async def test_where_no_copy_is_the_next_model_answers() -> None:
    route = RouteRules("r", "good", fallbacks=(Fallback("quick"),))
    async with mesh(route, down=[GOOD]) as it:
        works = [asked(index) for index in range(12)]
        await it.ask(*works)
        assert [it.answers.tokens[number] for number in range(12)] == await answer_of(QUICK, *works)
        stub: lane_pb2_grpc.StageServiceAsyncStub = lane_pb2_grpc.StageServiceStub(
            it.chain.channels.connect(it.served.endpoint)
        )
        listed = (await stub.ListBreakers(lane_pb2.ListBreakersRequest())).breakers
        assert [(b.instance, b.pool, b.position) for b in listed] == [
            ("router-0", GOOD.pool, lane_pb2.BREAKER_POSITION_OPEN),
            ("router-0", QUICK.pool, lane_pb2.BREAKER_POSITION_CLOSED),
        ]
        assert listed[0].failed >= 10
        assert listed[0].probes_in_s > 0
        batcher = it.chain.batchers["batcher-0"].endpoint
        behind: lane_pb2_grpc.StageServiceAsyncStub = lane_pb2_grpc.StageServiceStub(it.chain.channels.connect(batcher))
        assert not (await behind.ListBreakers(lane_pb2.ListBreakersRequest())).breakers, "a stage without any"


async def test_a_shadow_changes_nothing() -> None:
    works = [asked(index) for index in range(6)]
    async with mesh(RouteRules("r", "quick", shadow=Shadow("good", 1.0))) as it:
        await it.ask(*works)
        assert [it.answers.tokens[number] for number in range(6)] == await answer_of(QUICK, *works)
        assert all(len(it.answers.notes[number]) == 1 for number in range(6))
        host = it.chain.hosts["executor-0"]
        assert host.copies[GOOD.pool] is not None


async def test_another_tokenizer_sends_the_work_back_to_admission() -> None:
    async with mesh(RouteRules("r", "good", fallbacks=(Fallback("foreign"),)), down=[GOOD]) as it:
        await it.ask(asked())
        error = it.answers.outcomes[0].error
        assert isinstance(error, Rerouted)
        assert error.metadata == {"model": "foreign", "tried": "good"}
        assert not it.answers.tokens
    async with mesh(RouteRules("r", "good", fallbacks=(Fallback("foreign"),)), down=[GOOD]) as it:
        again = asked(tokens_of="foreign", chosen="foreign", tried=("good",))
        await it.ask(again)
        assert [it.answers.tokens[0]] == await answer_of(FOREIGN, again)
        assert it.answers.notes[0][0].tried == ("good",)
