"""The executor as a stage, over a runner that does what the test says."""

from libs.errors import Cancelled, NoExecutor, StageUnavailable
from libs.lane.forwarder import DRAINING
from libs.lane.work import FinishReason, Outcome, Tier, Work
from libs.telemetry import names
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing
from services.executor.engine import BlockEvent, Capacity, Exactness, Listener, RunnerStats, Step
from services.executor.host import Host, HostedModel
from tests.unit.lanes import Answers, work


class HandRunner:
    """A loaded model whose steps a test makes."""

    capacity = Capacity(4, 100, 16, Exactness.EXACT)

    def __init__(self) -> None:
        self.works: dict[int, Work] = {}
        self.cancels: list[int] = []
        self.closed = False

    def submit(self, work_id: int, work: Work) -> None:
        assert not self.closed
        self.works[work_id] = work

    def cancel(self, work_id: int) -> None:
        self.cancels.append(work_id)

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

    def load(self, model: str, runner: HandRunner) -> HostedModel:
        hosted = self.host.host(model)
        hosted.runner = runner
        return hosted


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
        rig.lane.submit(index, work(index, model=model, resumed=[index * 1000]))
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
    assert [d.choice for d in await rig.host.explain(work(model="nobody"))] == ["refuse"]
