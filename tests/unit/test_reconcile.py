"""What placement says, made true: with the simulated engine, and with one that fails as it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from libs.catalogue import ModelSpec, Simulation
from libs.errors import NoExecutor, StageUnavailable
from libs.lane.work import FinishReason
from libs.tasks import Tasks
from libs.telemetry.tracing import untraced
from services.executor import reconcile
from services.executor.engine import Listener, LoadFailed, Runner
from services.executor.host import Host
from services.executor.reconcile import Reconciler
from services.executor.simulated.engine import SimulatedEngine
from services.executor.state import State
from tests.unit.lanes import Answers, work

SPEC = ModelSpec("m", "simulated:", 4096, 100, 16, 8, 512, simulation=Simulation(step_base_us=500.0))


class MoodyEngine(SimulatedEngine):
    """The simulated engine, which fails to load as often as `faults` says, and keeps its listeners at hand."""

    def __init__(self, *faults: Exception) -> None:
        super().__init__()
        self.faults = list(faults)
        self.dies_at_birth = ""
        self.loads: list[ModelSpec] = []
        self.runners: list[Runner] = []
        self.listener: Listener

    async def load(self, model: ModelSpec, listener: Listener):  # type: ignore[no-untyped-def]
        self.loads.append(model)
        if self.faults:
            raise self.faults.pop(0)
        runner = await super().load(model, listener)
        if self.dies_at_birth:
            reason, self.dies_at_birth = self.dies_at_birth, ""
            listener.on_broken(reason)
        self.listener = listener
        self.runners.append(runner)
        return runner


class Rig:
    """A reconciler, its engine, and every status it ever reported."""

    def __init__(self, engine: SimulatedEngine, tasks: Tasks) -> None:
        self.seen: list[dict[str, tuple[State, str]]] = []
        self.tasks = tasks
        self.host = Host("executor-0", untraced(), lambda *_: None, lambda m, why: self.reconciler.broken(m, why))
        self.reconciler = Reconciler(engine, self.host, tasks, self._changed)
        self.answers = Answers()
        self.lane = self.host.open(self.answers)

    def _changed(self) -> None:
        self.seen.append({m: (status.state, status.reason) for m, status in self.reconciler.statuses.items()})

    def states(self, model: str = "m") -> list[State]:
        """Its states so far, without repeats."""
        states = [seen[model][0] for seen in self.seen if model in seen]
        return [state for index, state in enumerate(states) if index == 0 or states[index - 1] is not state]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    async def ready(self, model: str = "m") -> None:
        await self.until(
            lambda: (status := self.reconciler.statuses.get(model)) is not None and status.state is State.READY
        )


@asynccontextmanager
async def rig(engine: SimulatedEngine | None = None) -> AsyncIterator[Rig]:
    tasks, engine = Tasks(), engine or MoodyEngine()
    try:
        yield Rig(engine, tasks)
    finally:
        await tasks.close()
        await engine.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "RETRY_S", (0.005, 0.02))
    monkeypatch.setattr(reconcile, "DRAIN_S", 0.3)


async def test_what_is_wanted_is_loaded_and_answers() -> None:
    async with rig() as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        assert it.states() == [State.LOADING, State.READY]
        status = it.reconciler.statuses["m"]
        assert (status.slots, status.blocks, status.block_tokens) == (8, 100, 16)
        it.lane.submit(1, work(1, tokens=3))
        await it.until(lambda: 1 in it.answers.outcomes)
        assert it.answers.outcomes[1].error is None


async def test_a_load_that_fails_is_told_and_tried_again() -> None:
    engine = MoodyEngine(LoadFailed("no such file"), KeyError("a bug"), LoadFailed("still none"))
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        reasons = [seen["m"][1] for seen in it.seen if seen["m"][0] is State.FAILED]
        assert reasons == ["no such file", "KeyError in the engine", "still none"]
        assert len(engine.loads) == 4


async def test_one_model_that_fails_does_not_hinder_another() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        bad = replace(SPEC, name="bad", slots=0)
        it.reconciler.want({"bad": bad, "m": SPEC})
        await it.ready("m")
        await it.until(lambda: State.FAILED in it.states("bad"))


async def test_an_engine_that_dies_is_loaded_again() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        it.lane.submit(1, work(1, tokens=4000))
        engine.listener.on_broken("signal 11")
        assert isinstance(it.answers.outcomes[1].error, StageUnavailable)
        assert it.reconciler.statuses["m"].state is State.LOADING
        assert "signal 11" in it.reconciler.statuses["m"].reason
        await it.ready()
        assert len(engine.loads) == 2
        assert engine.runners[0].closed  # type: ignore[attr-defined]
        it.lane.submit(2, work(2, tokens=3))
        await it.until(lambda: 2 in it.answers.outcomes)
        assert it.answers.outcomes[2].error is None


async def test_an_engine_that_dies_before_it_is_shown_is_loaded_again() -> None:
    engine = MoodyEngine()
    engine.dies_at_birth = "signal 9"
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        assert len(engine.loads) == 2
        it.lane.submit(1, work(1, tokens=3))
        await it.until(lambda: 1 in it.answers.outcomes)
        assert it.answers.outcomes[1].error is None


async def test_what_is_no_longer_wanted_drains_and_goes() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        it.lane.submit(1, work(1, tokens=100))
        it.reconciler.want({})
        await it.until(lambda: State.DRAINING in it.states())
        it.lane.submit(2, work(2))
        assert isinstance(it.answers.outcomes[2].error, StageUnavailable)
        await it.until(lambda: not it.reconciler.statuses)
        assert it.answers.outcomes[1].finish is FinishReason.LENGTH
        assert not it.host.models
        assert engine.runners[0].closed  # type: ignore[attr-defined]
        await it.until(lambda: len(it.tasks) == 0)


async def test_draining_has_an_end() -> None:
    async with rig() as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        it.lane.submit(1, work(1, tokens=4000))
        it.reconciler.want({})
        await it.until(lambda: not it.reconciler.statuses)
        assert isinstance(it.answers.outcomes[1].error, NoExecutor)


async def test_a_changed_spec_is_loaded_anew() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        it.reconciler.want({"m": replace(SPEC, slots=3)})
        await it.until(lambda: len(engine.loads) == 2)
        await it.ready()
        assert it.reconciler.statuses["m"].slots == 3
        assert it.states() == [State.LOADING, State.READY, State.DRAINING, State.LOADING, State.READY]


async def test_the_same_again_changes_nothing() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        for _ in range(3):
            it.reconciler.want({"m": replace(SPEC)})
            await it.ready()
            await asyncio.sleep(0.01)
        assert len(engine.loads) == 1


async def test_what_is_wanted_again_while_it_drains_comes_back() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.ready()
        it.lane.submit(1, work(1, tokens=50))
        it.reconciler.want({})
        await it.until(lambda: State.DRAINING in it.states())
        it.reconciler.want({"m": SPEC})
        await it.until(lambda: len(engine.loads) == 2)
        await it.ready()
        assert it.answers.outcomes[1].finish is FinishReason.LENGTH


async def test_an_unwanted_model_that_cannot_be_loaded_is_forgotten() -> None:
    engine = MoodyEngine(*(LoadFailed("no") for _ in range(1000)))
    async with rig(engine) as it:
        it.reconciler.want({"m": SPEC})
        await it.until(lambda: State.FAILED in it.states())
        it.reconciler.want({})
        await it.until(lambda: not it.reconciler.statuses)
        await it.until(lambda: len(it.tasks) == 0)
