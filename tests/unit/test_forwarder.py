"""The forwarder, driven by hand: whatever happens to the stages behind, a work has its tokens once and one end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.clock import ManualClock
from libs.errors import Cancelled, DeadlinePassed, InternalError, StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import ATTEMPTS, BACKSTOP_S, DRAINING, PATIENCE_S, Forwarder
from libs.lane.frame import Frame
from libs.lane.stage import Sink
from libs.lane.work import FinishReason, Note, Outcome, Work
from tests.unit.lanes import Answers, HandLane, HandStage, answer, work


def forwarder(clock: ManualClock, resent: list[Work] | None = None, **stages: HandStage) -> Forwarder:
    """One that prefers the neighbour whose name comes first."""
    made = Forwarder("router", lambda work, ready: ready[0], clock, (resent if resent is not None else []).append)
    made.set_neighbours(stages)
    return made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_tokens_and_outcomes_pass_under_the_ids_of_the_lane_in_front(clock: ManualClock) -> None:
    a, one, two = HandStage(), Answers(), Answers()
    made = forwarder(clock, a=a)
    lanes = [made.open(one), made.open(two)]
    for lane in lanes:
        lane.submit(7, work(7))
    a.lane.run()
    for answers in (one, two):
        assert answers.tokens == {7: answer(work(7))}
        assert answers.outcomes[7].finish is FinishReason.LENGTH
    assert made.in_flight == 0


def test_a_lost_work_goes_to_another_with_the_tokens_so_far(clock: ManualClock) -> None:
    a, b, answers, resent = HandStage(), HandStage(), Answers(), list[Work]()
    made = forwarder(clock, resent, a=a, b=b)
    made.open(answers).submit(1, work(1))
    a.lane.step(count=3)
    a.lane.cut()
    assert list(b.lane.sent[0].resumed) == answer(work(1))[:3]
    assert resent == [work(1)]
    b.lane.run()
    assert answers.tokens[1] == answer(work(1))
    assert answers.outcomes[1].output_tokens == 8


def test_repeats_are_dropped(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    forwarder(clock, a=a).open(answers).submit(1, work(1))
    (up_id,) = a.lane.works
    right = answer(work(1))
    for offset, count in ((0, 3), (0, 2), (1, 4), (4, 1)):
        frame = Draft()
        frame.add(up_id, offset, right[offset : offset + count], [-1.0] * count)
        a.lane.sink.on_frame(Frame.of(frame))
    assert answers.tokens[1] == right[:5]
    assert answers.log_probs[1] == [-1.0] * 5


def test_behind_a_gap_the_work_is_sent_again(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    forwarder(clock, a=a).open(answers).submit(1, work(1))
    (up_id,) = a.lane.works
    right = answer(work(1))
    frame = Draft()
    frame.add(up_id, 0, right[:2])
    frame.add(up_id, 5, right[5:7])
    a.lane.sink.on_frame(Frame.of(frame))
    assert answers.tokens[1] == right[:2]
    assert a.lane.cancels == [up_id]
    assert list(a.lane.sent[-1].resumed) == right[:2]
    del a.lane.works[up_id]
    a.lane.run()
    assert answers.tokens[1] == right


def test_works_wait_while_nobody_is_ready_and_then_go_in_order(clock: ManualClock) -> None:
    a, answers = HandStage(ready=False), Answers()
    made = forwarder(clock, a=a)
    lane = made.open(answers)
    for index in range(3):
        lane.submit(index, work(index))
    assert made.in_flight == 3
    a.lane.mend()
    assert [w.request_id for w in a.lane.sent] == ["request-0", "request-1", "request-2"]


def test_patience_begins_when_the_last_neighbour_was_seen(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    lane = made.open(answers)
    clock.advance(3600)
    made.expire()
    a.lane.cut()
    clock.advance(PATIENCE_S - 1)
    made.expire()
    lane.submit(1, work(1))
    assert not answers.outcomes
    clock.advance(2)
    lane.submit(2, work(2))
    error = answers.outcomes[2].error
    assert isinstance(error, StageUnavailable)
    assert error.retry_after_s
    a.lane.mend()
    a.lane.run()
    assert answers.tokens == {1: answer(work(1))}


def test_a_retired_neighbour_keeps_what_it_has_and_then_its_lane_closes(clock: ManualClock) -> None:
    a, b, answers = HandStage(), HandStage(), Answers()
    made = forwarder(clock, a=a)
    lane = made.open(answers)
    lane.submit(1, work(1))
    made.set_neighbours({"b": b})
    lane.submit(2, work(2))
    assert [w.request_id for w in b.lane.sent] == ["request-2"]
    assert a.lane.ready
    a.lane.run()
    assert a.lane.closed
    assert answers.tokens[1] == answer(work(1))


def test_a_retired_neighbour_whose_last_work_is_given_up_closes_too(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    lane = made.open(answers)
    lane.submit(1, work(1))
    made.set_neighbours({})
    lane.close()
    assert a.lane.closed


def test_a_neighbour_under_its_old_name_at_a_new_place_takes_over(clock: ManualClock) -> None:
    old, new, answers = HandStage(), HandStage(), Answers()
    made = forwarder(clock, a=old)
    made.open(answers).submit(1, work(1))
    old.lane.step(count=2)
    made.set_neighbours({"a": new})
    old.lane.cut()
    assert old.lane.closed
    new.lane.run()
    assert answers.tokens[1] == answer(work(1))


def test_what_a_draining_neighbour_hands_back_goes_to_another(clock: ManualClock) -> None:
    a, b, answers = HandStage(), HandStage(), Answers()
    made = forwarder(clock, a=a, b=b)
    made.open(answers).submit(1, work(1))
    (up_id,) = a.lane.works
    a.lane.end(up_id, Outcome(error=StageUnavailable("draining", metadata={DRAINING: "true"})))
    b.lane.run()
    assert answers.tokens[1] == answer(work(1))
    assert made.ready_neighbours() == ["b"]


def test_other_errors_pass(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    forwarder(clock, a=a).open(answers).submit(1, work(1))
    (up_id,) = a.lane.works
    a.lane.end(up_id, Outcome(error=InternalError("a bug")))
    assert isinstance(answers.outcomes[1].error, InternalError)


def test_a_cancelled_work_ends_where_it_runs(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    lane = forwarder(clock, a=a).open(answers)
    lane.submit(1, work(1))
    lane.cancel(1)
    assert not answers.outcomes
    (up_id,) = a.lane.works
    assert a.lane.cancels == [up_id]
    a.lane.end(up_id, Outcome(error=Cancelled("as asked"), output_tokens=0))
    assert answers.outcomes[1].error is not None


@pytest.mark.parametrize("broken_first", [True, False])
def test_a_cancelled_work_is_never_sent_again(clock: ManualClock, broken_first: bool) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    lane = made.open(answers)
    lane.submit(1, work(1))
    a.lane.step(count=2)
    if broken_first:
        a.lane.cut()
        lane.cancel(1)
    else:
        lane.cancel(1)
        a.lane.cut()
    assert isinstance(answers.outcomes[1].error, Cancelled)
    assert answers.outcomes[1].output_tokens == 2
    a.lane.mend()
    assert len(a.lane.sent) == 1
    assert made.in_flight == 0


class Meddler(Answers):
    """A sink that cancels everything on its lane as soon as one work has ended."""

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        super().on_outcome(work_id, outcome)
        for other in range(4):
            self.lane.cancel(other)  # type: ignore[attr-defined]


def test_a_sink_that_cancels_while_works_are_being_sent_again_raises_none_from_the_dead(clock: ManualClock) -> None:
    a, answers = HandStage(), Meddler()
    made = forwarder(clock, a=a)
    answers.lane = lane = made.open(answers)  # type: ignore[attr-defined]
    for index in range(4):
        lane.submit(index, work(index))
    a.lane.step(next(iter(a.lane.works)), count=8)  # of the first, only the outcome is missing
    a.lane.cut()
    a.lane.mend()
    assert set(answers.outcomes) == {0, 1, 2, 3}
    assert not a.lane.works


class RefusingLane(HandLane):
    """Refuses each work as soon as it comes: the outcome is there before `submit` returns."""

    def submit(self, work_id: int, work: Work) -> None:
        super().submit(work_id, work)
        self.end(work_id, Outcome(error=InternalError("a bug")))


class RefusingStage(HandStage):
    def new_lane(self, sink: Sink) -> HandLane:
        return RefusingLane(sink, self.opens_ready)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_works_that_end_while_the_parked_ones_are_sent_are_not_sent(clock: ManualClock, how: str) -> None:
    a = RefusingStage(ready=False)
    made = forwarder(clock, a=a)

    class Quitter(Answers):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            if how == "close":
                lane.close()
            elif work_id == 0:
                for other in (1, 2):
                    lane.cancel(other)

    lane = made.open(answers := Quitter())
    for index in range(3):
        lane.submit(index, work(index))
    a.lane.mend()
    assert [w.request_id for w in a.lane.sent] == ["request-0"]
    assert set(answers.outcomes) == ({0} if how == "close" else {0, 1, 2})
    assert made.in_flight == 0


def test_a_whole_answer_without_its_outcome_needs_no_second_run(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    forwarder(clock, a=a).open(answers).submit(1, work(1))
    a.lane.step(count=8)
    a.lane.cut()
    assert answers.outcomes[1].finish is FinishReason.LENGTH
    assert answers.outcomes[1].output_tokens == 8


def test_a_work_that_breaks_every_lane_is_given_up(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    made.open(answers).submit(1, work(1))
    for _ in range(ATTEMPTS):
        assert not answers.outcomes
        a.lane.cut()
        a.lane.mend()
    assert isinstance(answers.outcomes[1].error, StageUnavailable)
    assert len(a.lane.sent) == ATTEMPTS


def test_every_new_token_gives_it_as_many_attempts_again(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    forwarder(clock, a=a).open(answers).submit(1, work(1))
    for _ in range(4):
        for _ in range(ATTEMPTS - 1):
            a.lane.cut()
            a.lane.mend()
        a.lane.step()
        a.lane.cut()
        a.lane.mend()
    assert not answers.outcomes
    a.lane.run()
    assert answers.tokens[1] == answer(work(1))


def test_the_deadline_is_the_stages_behind_first(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    made.open(answers).submit(1, work(1, deadline=clock.now() + 5))
    clock.advance(5 + BACKSTOP_S - 0.1)
    made.expire()
    assert not answers.outcomes
    clock.advance(0.1)
    made.expire()
    error = answers.outcomes[1].error
    assert isinstance(error, DeadlinePassed)
    assert error.metadata == {"stage": "behind router"}
    assert a.lane.cancels == list(a.lane.works)


def test_a_parked_work_has_a_deadline(clock: ManualClock) -> None:
    a, answers = HandStage(ready=False), Answers()
    made = forwarder(clock, a=a)
    made.open(answers).submit(1, work(1, deadline=clock.now() + 5))
    clock.advance(7)
    made.expire()
    error = answers.outcomes[1].error
    assert isinstance(error, DeadlinePassed)
    assert error.metadata == {"stage": "router"}
    a.lane.mend()
    assert not a.lane.sent


def test_works_that_ended_are_not_remembered_until_their_deadline(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    lane = made.open(answers)
    for index in range(5000):
        lane.submit(index, work(index, tokens=1))
        a.lane.run()
    made.expire()
    assert len(made._deadlines) <= 1024


def test_notes_pass_under_the_id_of_the_lane_in_front(clock: ManualClock) -> None:
    a, answers = HandStage(), Answers()
    made = forwarder(clock, a=a)
    made.open(answers).submit(7, work(7))
    (up_id,) = a.lane.works
    a.lane.sink.on_note(up_id, Note(waiting="m is being loaded"))
    a.lane.sink.on_note(up_id + 1, Note(waiting="nobody's"))
    a.lane.run()
    a.lane.sink.on_note(up_id, Note(waiting="too late"))
    assert answers.notes == {7: [Note(waiting="m is being loaded")]}


def test_where_a_work_began_it_goes_on(clock: ManualClock) -> None:
    a, b, answers = HandStage(), HandStage(), Answers()
    made = forwarder(clock, a=a, b=b)
    made.open(answers).submit(1, work(1, pool=""))
    (up_id,) = a.lane.works
    a.lane.sink.on_note(up_id, Note("m@1"))
    a.lane.sink.on_note(up_id, Note(waiting="that is no news of the pool"))
    a.lane.sink.on_note(up_id, Note("m@2"))
    a.lane.step(count=2)
    a.lane.cut()
    assert [one.pool for one in b.lane.sent] == ["m@2"]
    b.lane.run()
    assert answers.tokens[1] == answer(work(1))


async def test_explain_asks_whom_the_work_would_go_to(clock: ManualClock) -> None:
    made = forwarder(clock, a=HandStage())
    assert [d.stage for d in await made.explain(work(3))] == ["hand"]
    made.set_neighbours({})
    assert [d.choice for d in await made.explain(work(3))] == ["wait"]


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, steps, cancels and losses in any order: each work ends once, with exact tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.names = ("a", "b")
        self.stages = {name: HandStage() for name in self.names}
        self.forwarder = Forwarder("router", lambda work, ready: ready[len(work.resumed) % len(ready)], self.clock)
        self.forwarder.set_neighbours(self.stages)
        self.answers = Answers()
        self.lane = self.forwarder.open(self.answers)
        self.works: list[Work] = []

    @rule(tokens=st.integers(1, 5))
    def arrive(self, tokens: int) -> None:
        self.works.append(work(len(self.works), tokens=tokens))
        self.lane.submit(len(self.works) - 1, self.works[-1])

    @rule(name=st.sampled_from(("a", "b")), count=st.integers(1, 3))
    def step(self, name: str, count: int) -> None:
        lane = self.stages[name].lane
        if lane.ready:
            lane.step(count=count)

    @rule(name=st.sampled_from(("a", "b")))
    def finish(self, name: str) -> None:
        lane = self.stages[name].lane
        for work_id in [w for w in lane.works if lane.made[w] == lane.works[w].sampling.max_tokens]:
            lane.end(work_id)

    @rule(name=st.sampled_from(("a", "b")))
    def cut(self, name: str) -> None:
        if self.stages[name].lane.ready:
            self.stages[name].lane.cut()

    @rule(name=st.sampled_from(("a", "b")))
    def mend(self, name: str) -> None:
        lane = self.stages[name].lane
        if not lane.ready and not lane.closed:
            lane.mend()

    @rule(name=st.sampled_from(("a", "b")))
    def replace(self, name: str) -> None:
        self.stages[name] = HandStage()
        self.forwarder.set_neighbours(self.stages)

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.lane.cancel(data.draw(st.integers(0, len(self.works) - 1)))

    @invariant()
    def tokens_are_right(self) -> None:
        for index, tokens in self.answers.tokens.items():
            assert tokens == answer(self.works[index])[: len(tokens)]
        for index, outcome in self.answers.outcomes.items():
            if outcome.finish is not None:
                assert self.answers.tokens[index] == answer(self.works[index])

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.forwarder.in_flight + len(self.answers.outcomes) == len(self.works)

    def teardown(self) -> None:
        for stage in self.stages.values():
            if not stage.lane.ready:
                stage.lane.mend()
        for _ in range(3):
            for stage in self.stages.values():
                stage.lane.run()
        self.clock.advance(2e9)
        self.forwarder.expire()  # what a replaced neighbour kept
        assert set(self.answers.outcomes) == set(range(len(self.works)))
        assert self.forwarder.in_flight == 0


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_order = AnyOrder.TestCase
