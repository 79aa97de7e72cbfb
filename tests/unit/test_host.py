"""The executor as a stage, over a runner that does what the test says."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libs.catalogue import ModelSpec
from libs.errors import Cancelled, HeadraceError, NoExecutor, NotSupported, StageUnavailable
from libs.lane.forwarder import DRAINING
from libs.lane.work import FinishReason, Grammar, Outcome, Sampling, Tier, Work
from libs.telemetry import names
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing
from services.executor.engine import BlockEvent, Capabilities, Capacity, Exactness, Listener, RunnerStats, Step
from services.executor.host import Copy, Host
from tests.unit.lanes import Answers, work


class HandRunner:
    """A loaded model whose steps a test makes."""

    capacity = Capacity(4, 100, 16, Exactness.EXACT)
    capabilities = Capabilities(Exactness.EXACT, log_probs=True, adapters="batch")

    def __init__(self) -> None:
        self.works: dict[int, Work] = {}
        self.cancels: list[int] = []
        self.closed = False

    def submit(self, work_id: int, work: Work) -> None:
        assert not self.closed
        self.works[work_id] = work

    def cancel(self, work_id: int) -> None:
        self.cancels.append(work_id)

    async def load_adapter(self, adapter: ModelSpec) -> None:
        raise AssertionError("the host loads none by itself")

    async def unload_adapter(self, adapter: str) -> None:
        raise AssertionError("the host unloads none by itself")

    async def self_check(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


class Rig:
    """A host that holds model m."""

    def __init__(self) -> None:
        self.spans = list[SpanRecord]()
        self.steps: list[tuple[str, Step]] = []
        self.broken: list[tuple[str, str]] = []
        self.host = Host(
            "executor-0",
            Tracing("executor", "executor-0", 1.0, self.spans.append),
            lambda model, step: self.steps.append((model, step)),
            lambda model, reason: self.broken.append((model, reason)),
        )
        self.runner = HandRunner()
        self.listener = self.load("m", self.runner)
        self.answers = Answers()
        self.lane = self.host.open(self.answers)

    def load(self, model: str, runner: HandRunner) -> Copy:
        copy = self.host.host(model)
        copy.runner = runner
        return copy


def step(*entries: tuple[int, int, list[int]], ends: dict[int, Outcome] | None = None) -> Step:
    made = Step(outcomes=list((ends or {}).items()), stats=RunnerStats(running=1))
    for work_id, offset, tokens in entries:
        made.frame.add(work_id, offset, tokens)
    return made


def test_a_hosted_model_listens() -> None:
    listener: Listener = Rig().listener
    assert listener is not None


def test_a_step_is_sorted_by_lane() -> None:
    rig = Rig()
    other = Answers()
    second = rig.host.open(other)
    for lane in (rig.lane, second):
        lane.submit(7, work(7))
        lane.submit(8, work(8))
    a, b, c, d = rig.runner.works
    rig.listener.on_step(step((c, 0, [70]), (a, 0, [10, 11]), (d, 0, [80]), (b, 0, [20])))
    rig.listener.on_step(step((a, 2, [12]), ends={a: Outcome(FinishReason.STOP, output_tokens=3)}))
    assert rig.answers.tokens == {7: [10, 11, 12], 8: [20]}
    assert other.tokens == {7: [70], 8: [80]}
    assert rig.answers.outcomes[7].executor == "executor-0"
    assert not other.outcomes
    assert rig.host.in_flight == 3


def test_what_it_does_not_hold_it_hands_back() -> None:
    rig = Rig()
    rig.host.host("loading")
    for index, model in enumerate(("nobody", "loading")):
        rig.lane.submit(index, work(index, pool=model, resumed=[index * 1000]))
        assert isinstance(rig.answers.outcomes[index].error, NoExecutor)
        assert rig.answers.outcomes[index].output_tokens == 1


def test_a_draining_executor_takes_nothing_new_and_finishes_the_rest() -> None:
    rig = Rig()
    rig.lane.submit(1, work(1))
    rig.host.draining = True
    rig.lane.submit(2, work(2))
    error = rig.answers.outcomes[2].error
    assert isinstance(error, StageUnavailable)
    assert DRAINING in error.metadata
    (run_id,) = rig.runner.works
    rig.listener.on_step(step(ends={run_id: Outcome(FinishReason.STOP)}))
    assert rig.answers.outcomes[1].finish is FinishReason.STOP


def test_a_draining_model_takes_nothing_new() -> None:
    rig = Rig()
    rig.listener.draining = True
    rig.lane.submit(1, work(1))
    error = rig.answers.outcomes[1].error
    assert isinstance(error, StageUnavailable)
    assert DRAINING in error.metadata


def test_a_dead_engine_hands_every_work_back() -> None:
    rig = Rig()
    for index in range(3):
        rig.lane.submit(index, work(index))
    rig.listener.on_broken("signal 11")
    assert all(isinstance(outcome.error, StageUnavailable) for outcome in rig.answers.outcomes.values())
    assert len(rig.answers.outcomes) == 3
    assert rig.broken == [("m", "signal 11")]
    assert [s.events for _, s in rig.steps] == [[BlockEvent("cleared")]]
    rig.lane.submit(3, work(3))
    assert isinstance(rig.answers.outcomes[3].error, NoExecutor)
    assert rig.host.in_flight == 0


def test_an_unloaded_model_hands_every_work_back() -> None:
    rig = Rig()
    rig.lane.submit(1, work(1))
    rig.host.drop("m")
    assert isinstance(rig.answers.outcomes[1].error, NoExecutor)
    rig.host.drop("m")
    assert rig.host.in_flight == 0


def test_a_cancel_reaches_the_runner_and_its_outcome_comes_back() -> None:
    rig = Rig()
    rig.lane.submit(1, work(1))
    rig.lane.cancel(1)
    rig.lane.cancel(99)
    (run_id,) = rig.runner.cancels
    rig.listener.on_step(step(ends={run_id: Outcome(error=Cancelled("cancelled"))}))
    assert isinstance(rig.answers.outcomes[1].error, Cancelled)


def test_the_end_of_a_lane_cancels_its_works_and_no_others() -> None:
    rig = Rig()
    other = Answers()
    second = rig.host.open(other)
    rig.lane.submit(1, work(1))
    second.submit(1, work(1))
    rig.lane.close()
    first, last = rig.runner.works
    assert rig.runner.cancels == [first]
    rig.listener.on_step(step((first, 0, [1]), (last, 0, [2]), ends={first: Outcome(error=Cancelled("cancelled"))}))
    assert not rig.answers.tokens
    assert not rig.answers.outcomes
    assert other.tokens == {1: [2]}


def test_prefill_and_decode_are_spans_of_their_own() -> None:
    rig = Rig()
    rig.lane.submit(1, work(1))
    (run_id,) = rig.runner.works
    begun = step()
    begun.started.append((run_id, 3))
    rig.listener.on_step(begun)
    rig.listener.on_step(step((run_id, 0, [1])))
    rig.listener.on_step(step((run_id, 1, [2]), ends={run_id: Outcome(FinishReason.STOP, output_tokens=2)}))
    prefill, decode = rig.spans
    assert (prefill.name, decode.name) == (names.PREFILL, names.DECODE)
    assert prefill.attributes[names.GEN_AI_CACHED_TOKENS] == 3
    assert decode.attributes[names.GEN_AI_OUTPUT_TOKENS] == 2


async def test_queues_and_explain_say_what_is() -> None:
    rig = Rig()
    rig.lane.submit(1, work(1))
    rig.lane.submit(2, work(2, tier=Tier.ASYNC))
    assert [(q.pool, q.tier, q.running) for q in await rig.host.queues()] == [
        ("m", Tier.INTERACTIVE, 1), ("m", Tier.ASYNC, 1)
    ]  # fmt: skip
    assert [d.choice for d in await rig.host.explain(work())] == ["run on executor-0"]
    assert [d.choice for d in await rig.host.explain(work(pool="nobody"))] == ["refuse"]


async def test_what_its_model_cannot_do_is_refused_before_the_runner_sees_it() -> None:
    rig = Rig()
    asks = work(1, grammar=Grammar("regex", "a"), sampling=Sampling(8, top_k=4), resumed=[1000])
    rig.lane.submit(1, asks)
    error = rig.answers.outcomes[1].error
    assert isinstance(error, NotSupported)
    assert "regex, top_k" in error.message
    assert rig.answers.outcomes[1].output_tokens == 1
    assert not rig.runner.works
    assert [(d.choice, d.reason) for d in await rig.host.explain(asks)] == [("refuse", error.message)]


def test_the_pool_of_a_work_is_a_version() -> None:
    rig = Rig()
    newer = HandRunner()
    rig.load("m@2", newer)
    rig.lane.submit(1, work(1, pool="m@2"))
    assert (len(rig.runner.works), len(newer.works)) == (0, 1)
    rig.lane.submit(2, work(2, pool="m@3"))
    assert isinstance(rig.answers.outcomes[2].error, NoExecutor)


# --- works with adapters -------------------------------------------------------------------------

Done = Callable[[HeadraceError | None], None]


class HandAdapters:
    """The adapters of a copy: told to be there, or not, when the test says; keeps the books of who holds what."""

    def __init__(self) -> None:
        self.at_once = False
        self.waiting: list[tuple[str, Done]] = []
        self.held: Counter[str] = Counter()

    def take(self, adapter: str, done: Done) -> None:
        self.waiting.append((adapter, done))
        if self.at_once:
            self.tell(len(self.waiting) - 1)

    def tell(self, index: int = 0, error: HeadraceError | None = None) -> None:
        adapter, done = self.waiting.pop(index)
        if error is None:
            self.held[adapter] += 1
        done(error)

    def give_up(self, adapter: str, done: Done) -> None:
        before = len(self.waiting)
        self.waiting = [(name, other) for name, other in self.waiting if other is not done]
        assert len(self.waiting) == before - 1, "it gave up what it did not wait for"

    def release(self, adapter: str) -> None:
        self.held[adapter] -= 1
        assert self.held[adapter] >= 0, "released more than taken"


class AdapterRig(Rig):
    """A host whose model takes adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = self.listener.adapters = HandAdapters()

    def submit(self, index: int, adapter: str = "a@1", **changes: object) -> None:
        self.lane.submit(index, work(index, adapter=adapter, **changes))  # type: ignore[arg-type]


def test_a_work_waits_for_its_adapter_and_gives_it_back() -> None:
    rig = AdapterRig()
    rig.submit(1)
    rig.submit(2, "")
    (base,) = rig.runner.works
    assert rig.runner.works[base].adapter == "", "it waits for nothing"
    assert rig.host.in_flight == 2
    rig.adapters.tell()
    assert rig.adapters.held == {"a@1": 1}
    (run_id,) = rig.runner.works.keys() - {base}
    rig.listener.on_step(step((run_id, 0, [1]), ends={run_id: Outcome(FinishReason.STOP, output_tokens=1)}))
    assert rig.answers.outcomes[1].finish is FinishReason.STOP
    assert not +rig.adapters.held
    assert rig.spans[-1].name == names.DECODE


def test_a_work_whose_adapter_lies_here_starts_at_once() -> None:
    rig = AdapterRig()
    rig.adapters.at_once = True
    rig.submit(1)
    assert len(rig.runner.works) == 1
    assert rig.adapters.held == {"a@1": 1}


def test_an_adapter_that_cannot_be_loaded_ends_its_works() -> None:
    rig = AdapterRig()
    rig.submit(1, resumed=[1000, 1001])
    rig.adapters.tell(error=StageUnavailable("it is too large"))
    assert isinstance(rig.answers.outcomes[1].error, StageUnavailable)
    assert rig.answers.outcomes[1].output_tokens == 2
    assert (len(rig.runner.works), rig.host.in_flight) == (0, 0)
    assert not +rig.adapters.held


def test_a_work_that_is_cancelled_while_it_waits_ends_at_once() -> None:
    rig = AdapterRig()
    rig.submit(1, resumed=[1000])
    rig.lane.cancel(1)
    assert isinstance(rig.answers.outcomes[1].error, Cancelled)
    assert rig.answers.outcomes[1].output_tokens == 1
    assert not rig.adapters.waiting, "nothing is loaded for it"
    assert not rig.runner.cancels
    assert rig.host.in_flight == 0


def test_a_cancel_of_a_work_that_runs_releases_its_adapter_with_the_outcome() -> None:
    rig = AdapterRig()
    rig.adapters.at_once = True
    rig.submit(1)
    rig.lane.cancel(1)
    assert rig.adapters.held == {"a@1": 1}, "the engine still uses it"
    (run_id,) = rig.runner.cancels
    rig.listener.on_step(step(ends={run_id: Outcome(error=Cancelled("as asked"))}))
    assert not +rig.adapters.held


def test_the_end_of_a_lane_gives_up_what_waits_and_releases_what_runs() -> None:
    rig = AdapterRig()
    rig.submit(1)
    rig.submit(2)
    rig.adapters.tell()
    rig.lane.close()
    assert not rig.adapters.waiting
    assert not +rig.adapters.held
    assert rig.host.in_flight == 0
    assert not rig.answers.outcomes
    assert len(rig.spans) == 2


def test_an_engine_that_dies_hands_back_what_waits_for_an_adapter_too() -> None:
    rig = AdapterRig()
    rig.submit(1)
    rig.submit(2)
    rig.adapters.tell()
    late = rig.adapters.waiting[0][1]
    rig.listener.on_broken("signal 11")
    assert all(isinstance(outcome.error, StageUnavailable) for outcome in rig.answers.outcomes.values())
    assert len(rig.answers.outcomes) == 2
    late(None)  # its desk closes later
    late(NoExecutor("closed"))
    assert len(rig.runner.works) == 1, "nothing is given to a runner that is gone"


def test_a_copy_that_is_dropped_hands_back_what_waits_for_an_adapter_too() -> None:
    rig = AdapterRig()
    rig.submit(1)
    rig.submit(2)
    rig.adapters.tell()
    rig.host.drop("m")
    assert all(isinstance(outcome.error, NoExecutor) for outcome in rig.answers.outcomes.values())
    assert not rig.adapters.waiting
    assert not +rig.adapters.held


def test_a_sink_that_cancels_others_in_an_outcome_harms_nothing() -> None:
    """As a stage in the same process may: the second work ends while the news of its adapter is on its way."""
    rig = AdapterRig()

    class Eager(Answers):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            if work_id == 1:
                rig.lane.cancel(2)

    rig.lane = rig.host.open(eager := Eager())
    rig.submit(1)
    rig.submit(2)
    (_, first), (_, second) = rig.adapters.waiting
    first(StageUnavailable("no"))
    rig.adapters.held["a@1"] += 1
    second(None)
    assert set(eager.outcomes) == {1, 2}
    assert not rig.runner.works
    assert not +rig.adapters.held


@pytest.mark.parametrize("adapters", ["none", "swap"])
def test_adapters_are_refused_where_there_are_none(adapters: str) -> None:
    rig = AdapterRig()
    rig.runner.capabilities = Capabilities(Exactness.EXACT, adapters=adapters)  # type: ignore[arg-type]
    rig.submit(1)
    assert (1 in rig.answers.outcomes) == (adapters == "none")
    assert len(rig.adapters.waiting) == (adapters == "swap")


class AnyOrder(RuleBasedStateMachine):
    """Works with and without adapters, in any order of news: each ends once, and what is held is what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = AdapterRig()
        self.count = 0

    @rule(adapter=st.sampled_from(["", "a@1", "b@1"]), at_once=st.booleans())
    def submit(self, adapter: str, at_once: bool) -> None:
        self.count += 1
        self.rig.adapters.at_once = at_once
        self.rig.submit(self.count, adapter)

    @rule(well=st.booleans(), data=st.data())
    def tell(self, well: bool, data: st.DataObject) -> None:
        if waiting := self.rig.adapters.waiting:
            index = data.draw(st.integers(0, len(waiting) - 1))
            self.rig.adapters.tell(index, None if well else StageUnavailable("no"))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if works := self.rig.runner.works:
            run_id = data.draw(st.sampled_from(sorted(works)))
            del works[run_id]
            self.rig.listener.on_step(step(ends={run_id: Outcome(FinishReason.STOP)}))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.count:
            self.rig.lane.cancel(data.draw(st.integers(1, self.count)))

    @rule()
    def die(self) -> None:
        self.rig.listener.on_broken("signal 9")
        self.rig.host.drop("m")
        outcomes = self.rig.answers.outcomes
        self.rig = AdapterRig()
        self.rig.answers.outcomes.update(outcomes)

    @invariant()
    def what_is_held_is_what_runs(self) -> None:
        rig = self.rig
        running = Counter(one.adapter for one in rig.runner.works.values() if one.adapter)
        assert +rig.adapters.held == running
        assert rig.host.in_flight == len(rig.runner.works) + len(rig.adapters.waiting)
        assert len(rig.answers.outcomes) + rig.host.in_flight == self.count


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_order = AnyOrder.TestCase
