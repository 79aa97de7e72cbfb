"""What placement says, made true: with the simulated engine, and with one that fails as it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from headrace.registry.v1 import registry_pb2 as pb
from libs.catalogue import ModelSpec, Simulation
from libs.clock import SystemClock
from libs.errors import NoExecutor, StageUnavailable
from libs.lane.work import FinishReason
from libs.settings import Etcd, Process, SettingsInvalid
from libs.tasks import Tasks
from libs.telemetry.tracing import untraced
from services.executor import reconcile
from services.executor.config import Settings
from services.executor.engine import Capacity, Exactness, Listener, LoadFailed, Runner, SelfCheckFailed
from services.executor.host import Host
from services.executor.reconcile import LOADS_AT_ONCE, Reconciler, Wanted
from services.executor.record import executor_record, labels
from services.executor.simulated.engine import SimulatedEngine, SimulatedRunner
from services.executor.state import HOLDS_MEMORY, State
from tests.unit.lanes import Answers, work

SPEC = ModelSpec(
    "m", "simulated:", 4096, 100, 16, 8, 512, memory_bytes=100, drain_s=0.3,
    simulation=Simulation(step_base_us=500.0),
)  # fmt: skip
MEMORY = 250


def versioned(version: str, **changes: object) -> ModelSpec:
    return replace(SPEC, version=version, pool="", **changes)  # type: ignore[arg-type]


def named(name: str, memory_bytes: int = 100) -> ModelSpec:
    return replace(SPEC, name=name, memory_bytes=memory_bytes, pool="")


def adapter(name: str, memory_bytes: int = 10) -> ModelSpec:
    return replace(SPEC, name=name, base="m", memory_bytes=memory_bytes)


class MoodyEngine(SimulatedEngine):
    """The simulated engine, which fails to load as often as `faults` says, and keeps its listeners at hand."""

    def __init__(self, *faults: Exception) -> None:
        super().__init__()
        self.faults = list(faults)
        self.dies_at_birth = ""
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.inside = 0
        self.most_inside = 0
        self.loads: list[ModelSpec] = []
        self.runners: list[Runner] = []
        self.listener: Listener

    async def load(self, model: ModelSpec, listener: Listener):  # type: ignore[no-untyped-def]
        self.loads.append(model)
        if self.faults:
            raise self.faults.pop(0)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await self.may_load.wait()
        self.inside -= 1
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
        self.most_bytes = 0
        self.tasks = tasks
        self.host = Host("executor-0", untraced(), lambda *_: None, lambda pool, why: self.reconciler.broken(pool, why))
        self.reconciler = Reconciler(engine, self.host, tasks, SystemClock(), MEMORY, self._changed)
        self.answers = Answers()
        self.lane = self.host.open(self.answers)

    def want(self, *specs: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> None:
        """Placement wants these copies, each with these adapters."""
        known = {spec.adapter: spec for spec in adapters}
        self.reconciler.want({spec.pool: Wanted(spec, known) for spec in specs})

    def state(self, pool: str = "m@0") -> tuple[State, str]:
        status = self.reconciler.statuses[pool]
        return status.state, status.reason

    def _changed(self) -> None:
        self.seen.append({m: (status.state, status.reason) for m, status in self.reconciler.statuses.items()})
        fits = [status for status in self.reconciler.statuses.values() if status.memory_bytes <= MEMORY]
        self.most_bytes = max(self.most_bytes, sum(s.memory_bytes for s in fits if s.state in HOLDS_MEMORY))

    def states(self, pool: str = "m@0") -> list[State]:
        """Its states so far, without repeats."""
        states = [seen[pool][0] for seen in self.seen if pool in seen]
        return [state for index, state in enumerate(states) if index == 0 or states[index - 1] is not state]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    async def ready(self, pool: str = "m@0") -> None:
        await self.until(
            lambda: (status := self.reconciler.statuses.get(pool)) is not None and status.state is State.READY
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


async def test_what_is_wanted_is_loaded_and_answers() -> None:
    async with rig() as it:
        it.want(SPEC)
        await it.ready()
        assert it.states() == [State.PENDING, State.LOADING, State.READY]
        status = it.reconciler.statuses["m@0"]
        assert status.capacity == Capacity(8, 100, 16, Exactness.EXACT, 8, SPEC.step_tokens)
        it.lane.submit(1, work(1, pool="m@0", tokens=3))
        await it.until(lambda: 1 in it.answers.outcomes)
        assert it.answers.outcomes[1].error is None


async def test_a_load_that_fails_is_told_and_tried_again() -> None:
    engine = MoodyEngine(LoadFailed("no such file"), KeyError("a bug"), LoadFailed("still none"))
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        reasons = [seen["m@0"][1] for seen in it.seen if seen["m@0"][0] is State.FAILED]
        assert reasons == ["no such file", "KeyError in the engine", "still none"]
        assert len(engine.loads) == 4


async def test_one_model_that_fails_does_not_hinder_another() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        bad = replace(SPEC, name="bad", pool="", slots=0)
        it.want(bad, SPEC)
        await it.ready()
        await it.until(lambda: State.FAILED in it.states("bad@0"))


async def test_an_engine_that_dies_is_loaded_again() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=4000))
        engine.listener.on_broken("signal 11")
        assert isinstance(it.answers.outcomes[1].error, StageUnavailable)
        assert it.reconciler.used_bytes == 100
        assert it.reconciler.statuses["m@0"].state is State.LOADING
        assert "signal 11" in it.reconciler.statuses["m@0"].reason
        await it.ready()
        assert len(engine.loads) == 2
        assert engine.runners[0].closed  # type: ignore[attr-defined]
        it.lane.submit(2, work(2, pool="m@0", tokens=3))
        await it.until(lambda: 2 in it.answers.outcomes)
        assert it.answers.outcomes[2].error is None


async def test_an_engine_that_dies_before_it_is_shown_is_loaded_again() -> None:
    engine = MoodyEngine()
    engine.dies_at_birth = "signal 9"
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        assert len(engine.loads) == 2
        it.lane.submit(1, work(1, pool="m@0", tokens=3))
        await it.until(lambda: 1 in it.answers.outcomes)
        assert it.answers.outcomes[1].error is None


async def test_what_is_no_longer_wanted_drains_and_goes() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=100))
        it.want()
        await it.until(lambda: State.DRAINING in it.states())
        it.lane.submit(2, work(2, pool="m@0"))
        assert isinstance(it.answers.outcomes[2].error, StageUnavailable)
        await it.until(lambda: not it.reconciler.statuses)
        assert it.answers.outcomes[1].finish is FinishReason.LENGTH
        assert not it.host.copies
        assert engine.runners[0].closed  # type: ignore[attr-defined]
        await it.until(lambda: len(it.tasks) == 0)


async def test_draining_has_an_end() -> None:
    async with rig() as it:
        it.want(SPEC)
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=4000))
        it.want()
        await it.until(lambda: not it.reconciler.statuses)
        assert isinstance(it.answers.outcomes[1].error, NoExecutor)


async def test_two_versions_answer_side_by_side() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        newer = versioned("1", slots=3)
        it.want(SPEC, newer)
        await it.ready("m@1")
        assert it.reconciler.statuses["m@0"].state is State.READY
        assert [s.version for s in it.reconciler.statuses.values()] == ["0", "1"]
        for index, pool in enumerate(("m@0", "m@1")):
            it.lane.submit(index, work(index, pool=pool, tokens=3))
        await it.until(lambda: len(it.answers.outcomes) == 2)
        it.want(newer)
        await it.until(lambda: "m@0" not in it.reconciler.statuses)
        assert it.states("m@0") == [State.PENDING, State.LOADING, State.READY, State.DRAINING]
        assert it.states("m@1") == [State.PENDING, State.LOADING, State.READY]


async def test_the_same_again_changes_nothing() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        for _ in range(3):
            it.want(replace(SPEC))
            await it.ready()
            await asyncio.sleep(0.01)
        assert len(engine.loads) == 1


async def test_what_is_wanted_again_while_it_drains_comes_back() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=50))
        it.want()
        await it.until(lambda: State.DRAINING in it.states())
        it.want(SPEC)
        await it.until(lambda: len(engine.loads) == 2)
        await it.ready()
        assert it.answers.outcomes[1].finish is FinishReason.LENGTH


async def test_an_unwanted_model_that_cannot_be_loaded_is_forgotten() -> None:
    engine = MoodyEngine(*(LoadFailed("no") for _ in range(1000)))
    async with rig(engine) as it:
        it.want(SPEC)
        await it.until(lambda: State.FAILED in it.states())
        it.want()
        await it.until(lambda: not it.reconciler.statuses)
        await it.until(lambda: len(it.tasks) == 0)


# --- memory, and turns ---------------------------------------------------------------------------


async def test_a_large_copy_waits_for_one_that_drains() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=100))
        it.want(large := named("large", 200))
        await it.until(lambda: it.state()[0] is State.DRAINING)
        await it.until(lambda: it.state("large@0") == (State.PENDING, "200 bytes are needed, 150 are free"))
        assert len(engine.loads) == 1
        assert it.reconciler.used_bytes == 100, "what waits uses nothing"
        await it.ready("large@0")
        assert it.answers.outcomes[1].finish is FinishReason.LENGTH
        assert it.reconciler.used_bytes == 200
        assert it.most_bytes <= MEMORY
        assert it.states(large.pool) == [State.PENDING, State.LOADING, State.READY]


async def test_room_for_adapters_is_memory_too() -> None:
    async with rig() as it:
        it.want(SPEC)
        await it.ready()
        it.want(SPEC, replace(named("n"), adapter_memory_bytes=60))
        await it.until(lambda: "n@0" in it.reconciler.statuses)
        await it.until(lambda: it.state("n@0") == (State.PENDING, "160 bytes are needed, 150 are free"))


async def test_a_copy_that_waits_and_is_withdrawn_is_forgotten() -> None:
    async with rig() as it:
        it.want(SPEC)
        await it.ready()
        it.want(SPEC, named("n", 200))
        await it.until(lambda: bool(it.state("n@0")[1]))
        it.want(SPEC)
        await it.until(lambda: "n@0" not in it.reconciler.statuses)
        assert State.LOADING not in it.states("n@0")


async def test_a_copy_that_can_never_fit_fails_with_the_numbers() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(named("huge", 251), SPEC)
        await it.ready()
        await it.until(lambda: it.state("huge@0")[0] is State.FAILED)
        assert it.state("huge@0")[1] == "it needs 251 bytes, and this executor has 250"
        assert [spec.name for spec in engine.loads] == ["m"]
        await it.until(lambda: it.reconciler.statuses["huge@0"].attempts > 1)


async def test_few_copies_are_loaded_at_once() -> None:
    engine = MoodyEngine()
    engine.may_load.clear()
    async with rig(engine) as it:
        specs = [named(f"m{n}", 40) for n in range(5)]
        it.want(*specs)
        await it.until(lambda: len(engine.loads) == LOADS_AT_ONCE)
        await asyncio.sleep(0.02)
        assert len(engine.loads) == LOADS_AT_ONCE
        waiting = [status for status in it.reconciler.statuses.values() if status.state is State.PENDING]
        assert {status.reason for status in waiting} == {f"{LOADS_AT_ONCE} copies are being loaded"}
        engine.may_load.set()
        for spec in specs:
            await it.ready(spec.pool)
        assert engine.most_inside == LOADS_AT_ONCE


async def test_a_load_that_fails_gives_its_turn_and_its_memory_to_others() -> None:
    engine = MoodyEngine(*(LoadFailed("no") for _ in range(3)))
    async with rig(engine) as it:
        it.want(named("a", 200), named("b", 200))
        await it.until(lambda: {it.state(pool)[0] for pool in ("a@0", "b@0")} >= {State.READY})
        assert it.most_bytes <= MEMORY


async def test_attempts_are_counted_until_one_succeeds() -> None:
    engine = MoodyEngine(LoadFailed("no"), LoadFailed("no"))
    async with rig(engine) as it:
        it.want(SPEC)
        await it.until(lambda: it.reconciler.statuses["m@0"].attempts == 2)
        await it.ready()
        assert it.reconciler.statuses["m@0"].attempts == 0


# --- what may change while a copy is loaded ------------------------------------------------------


async def test_what_a_loaded_copy_does_not_depend_on_changes_without_a_load() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC, adapters=[adapter("a")])
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", adapter="a@0", tokens=3))
        it.lane.submit(2, work(2, pool="m@0", adapter="b@0", tokens=3))
        await it.until(lambda: len(it.answers.outcomes) == 2)
        assert "larger than adapter_memory_bytes" in str(it.answers.outcomes[1].error)
        assert "does not know" in str(it.answers.outcomes[2].error)
        it.want(replace(SPEC, adapter_memory_bytes=30, drain_s=0.1), adapters=[adapter("b")])
        it.lane.submit(3, work(3, pool="m@0", adapter="b@0", tokens=3))
        await it.until(lambda: 3 in it.answers.outcomes)
        assert it.answers.outcomes[3].error is None
        status = it.reconciler.statuses["m@0"]
        assert (status.memory_bytes, it.reconciler.used_bytes) == (130, 130)
        assert list(status.adapters) == ["b@0"]
        assert len(engine.loads) == 1
        assert it.states() == [State.PENDING, State.LOADING, State.READY]


async def test_the_time_to_drain_is_the_one_that_was_said_last() -> None:
    async with rig() as it:
        it.want(replace(SPEC, drain_s=300.0))
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=4000))
        it.want(replace(SPEC, drain_s=0.0))
        it.want()
        await it.until(lambda: not it.reconciler.statuses)
        assert isinstance(it.answers.outcomes[1].error, NoExecutor)


# --- copies that do not answer -------------------------------------------------------------------


class Mute:
    """A runner's self-check that fails once when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.fault: Exception | None = None

        async def self_check(_: SimulatedRunner) -> None:
            self.asked += 1
            fault, self.fault = self.fault, None
            if fault is not None:
                raise fault

        monkeypatch.setattr(SimulatedRunner, "self_check", self_check)
        monkeypatch.setattr(reconcile, "CHECK_S", 0.02)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (SelfCheckFailed("it says nothing"), "it did not answer: it says nothing"),
        (ConnectionError("a bug"), "it did not answer: ConnectionError in the engine"),
    ],
)
async def test_a_copy_that_does_not_answer_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, reason: str
) -> None:
    mute, engine = Mute(monkeypatch), MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        await it.until(lambda: mute.asked > 2)
        assert len(engine.loads) == 1
        it.lane.submit(1, work(1, pool="m@0", tokens=4000))
        mute.fault = fault
        await it.until(lambda: len(engine.loads) == 2)
        assert isinstance(it.answers.outcomes[1].error, NoExecutor), "at once: it would not end by itself"
        await it.ready()
        assert (State.LOADING, reason) in [seen["m@0"] for seen in it.seen]
        assert engine.runners[0].closed  # type: ignore[attr-defined]
        it.lane.submit(2, work(2, pool="m@0", tokens=3))
        await it.until(lambda: 2 in it.answers.outcomes)
        assert it.answers.outcomes[2].error is None


async def test_a_check_stays_due_however_often_placement_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    mute = Mute(monkeypatch)
    async with rig() as it:
        it.want(SPEC)
        await it.ready()
        for _ in range(60):
            it.want(SPEC)
            await asyncio.sleep(0.002)
        assert mute.asked


async def test_a_check_that_fails_on_a_copy_that_goes_anyway_does_not_cut_its_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def self_check(_: SimulatedRunner) -> None:
        asked.set()
        await may_answer.wait()
        raise SelfCheckFailed("it says nothing")

    monkeypatch.setattr(SimulatedRunner, "self_check", self_check)
    monkeypatch.setattr(reconcile, "CHECK_S", 0.01)
    async with rig() as it:
        it.want(SPEC)
        await it.ready()
        await asked.wait()
        it.lane.submit(1, work(1, pool="m@0", tokens=50))
        it.want()
        may_answer.set()
        await it.until(lambda: not it.reconciler.statuses)
        assert it.answers.outcomes[1].finish is FinishReason.LENGTH


async def test_an_engine_that_fails_to_unload_does_not_keep_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(_: SimulatedRunner) -> None:
        raise KeyError("a bug")

    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(SPEC)
        await it.ready()
        monkeypatch.setattr(SimulatedRunner, "close", close)
        it.want()
        await it.until(lambda: not it.reconciler.statuses)
        it.want(SPEC)
        await it.ready()
        monkeypatch.undo()


async def test_an_engine_that_dies_on_a_copy_that_drains_lets_it_go() -> None:
    engine = MoodyEngine()
    async with rig(engine) as it:
        it.want(replace(SPEC, drain_s=300.0))
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", tokens=4000))
        it.want()
        await it.until(lambda: it.state()[0] is State.DRAINING)
        engine.listener.on_broken("signal 9")
        await it.until(lambda: not it.reconciler.statuses)
        assert isinstance(it.answers.outcomes[1].error, StageUnavailable)
        assert len(engine.loads) == 1


# --- the record in the registry ------------------------------------------------------------------


def settings(*labels: str) -> Settings:
    process = Process(instance="executor-0", listen="127.0.0.1:0", advertise="127.0.0.1:1")
    return Settings(process, Etcd(("127.0.0.1:2379",)), engine="simulated", memory_bytes=MEMORY, labels=labels)


async def test_the_record_says_how_far_each_copy_is() -> None:
    async with rig() as it:
        base = replace(SPEC, adapter_memory_bytes=50)
        it.want(base, named("huge", 999), named("late", 150), adapters=[adapter("a")])
        await it.ready()
        it.lane.submit(1, work(1, pool="m@0", adapter="a@0", tokens=3))
        await it.until(lambda: len(it.answers.outcomes) == 1)
        await it.until(lambda: it.state("huge@0")[0] is State.FAILED and bool(it.state("late@0")[1]))
        record = executor_record(settings("zone=a", "gpu=h100"), "127.0.0.1:1", 5.0, False, it.reconciler.statuses)
    assert (record.instance, record.engine, record.memory_bytes, record.used_bytes) == (
        "executor-0", "simulated", 250, 150
    )  # fmt: skip
    assert dict(record.labels) == {"zone": "a", "gpu": "h100"}
    assert record.endpoint == "127.0.0.1:1"
    huge, late, m = record.models
    assert (huge.pool, huge.state, huge.attempts > 0) == ("huge@0", pb.MODEL_STATE_FAILED, True)
    assert (late.state, late.reason) == (pb.MODEL_STATE_PENDING, "150 bytes are needed, 100 are free")
    assert (m.model, m.version, m.pool, m.state) == ("m", "0", "m@0", pb.MODEL_STATE_READY)
    assert (m.slots, m.blocks, m.block_tokens, m.adapter_slots, m.memory_bytes) == (8, 100, 16, 8, 150)
    assert m.step_tokens == SPEC.step_tokens
    assert list(m.adapters) == [pb.ResidentAdapter(adapter="a@0", memory_bytes=10)]
    assert m.since > 1e9


@pytest.mark.parametrize("text", ["zone", "=a", "zone=", ""])
def test_a_label_that_is_none_is_told(text: str) -> None:
    with pytest.raises(SettingsInvalid, match="is not key=value"):
        labels((text,))


def test_a_label_may_hold_an_equals_sign() -> None:
    assert labels(("a=b=c",)) == {"a": "b=c"}
