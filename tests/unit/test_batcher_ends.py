"""How works end early in the batcher: cancelled, past their deadline, refused or handed back."""

import pytest

from libs.errors import Cancelled, DeadlinePassed, Overloaded, StageUnavailable
from libs.lane.forwarder import DRAINING
from libs.lane.work import FinishReason, Outcome, Tier
from services.batcher.dispatch import AWAY_S
from services.batcher.executors import ExecutorInfo
from services.batcher.seat import ModelCapacity
from tests.unit.batching import YES, Rig
from tests.unit.lanes import Answers, work


def test_cancelled_in_the_queue() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    rig.lane.cancel(1)
    assert isinstance(rig.answers.outcomes[1].error, Cancelled)
    rig.run_all()
    rig.at_rest()
    assert rig.answers.outcomes[0].finish is FinishReason.LENGTH


def test_cancelled_while_the_manager_is_asked() -> None:
    rig = Rig("a", slots=1, reply="later")
    rig.submit(1)
    rig.lane.cancel(0)
    assert isinstance(rig.answers.outcomes[0].error, Cancelled)
    rig.at_rest()
    rig.memory.answer()
    assert not rig.memory.reserved
    assert not rig["a"].lane.sent


def test_cancelled_while_it_runs() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    (key,) = rig["a"].lane.works
    rig.lane.cancel(0)
    assert rig["a"].lane.cancels == [key]
    assert not rig.answers.outcomes, "it ends where it runs, so that what it used is known"
    assert rig.running("a") == [0], "its slot is not free yet"
    rig["a"].lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=3))
    assert rig.answers.outcomes[0].output_tokens == 3
    assert rig.running("a") == [1]


def test_cancelled_while_it_runs_on_an_executor_that_dies() -> None:
    rig = Rig("a")
    rig.submit(1)
    rig.lane.cancel(0)
    rig["a"].lane.cut()
    rig["a"].lane.mend()
    rig.tick(1)
    assert isinstance(rig.answers.outcomes[0].error, Cancelled)
    assert len(rig["a"].lane.sent) == 1
    rig.at_rest()


def test_the_end_of_a_lane_stops_all_that_is_on_it() -> None:
    rig = Rig("a", slots=1, reply="later")
    rig.submit(1)
    rig.memory.answer()
    rig.submit(1)
    rig.have("a", "b")
    assert len(rig.memory.asked) == 1  # one runs, one is asked for, one waits
    rig.submit(1)
    rig.lane.close()
    assert rig.batcher.in_flight == 0
    assert not rig.answers.outcomes, "nothing comes down a closed lane"
    (key,) = rig["a"].lane.cancels
    rig["a"].lane.end(key, Outcome(error=Cancelled("as asked")))
    rig.at_rest()


@pytest.mark.parametrize("place", ["queue", "asking", "executor"])
def test_a_deadline_in_each_place(place: str) -> None:
    rig = Rig("a", slots=1, reply="later" if place == "asking" else YES)
    if place == "queue":
        rig.submit(1)
    rig.submit(1, deadline=rig.clock.now() + 5)
    rig.tick(4.9)
    assert not rig.answers.outcomes
    rig.tick(0.1)
    ((index, outcome),) = rig.answers.outcomes.items()
    assert index == len(rig.works) - 1
    assert isinstance(outcome.error, DeadlinePassed)
    assert outcome.error.metadata["stage"] == ("executor" if place == "executor" else "queue")
    assert outcome.error.metadata["tokens"] == "0"
    assert ("a, after 0 tokens" if place == "executor" else "in the queue") in outcome.error.message
    if place == "executor":  # the slot is free when the executor says so
        (key,) = rig["a"].lane.cancels
        rig["a"].lane.end(key, Outcome(error=Cancelled("as asked")))
    rig.run_all()
    rig.at_rest()


def test_a_full_queue_refuses() -> None:
    rig = Rig("a", slots=1, works=2)
    rig.submit(4)
    error = rig.answers.outcomes[3].error
    assert isinstance(error, Overloaded)
    assert error.retry_after_s
    rig.submit(1, resumed=[4000])  # what has begun is let in
    assert 4 not in rig.answers.outcomes


def test_what_no_executor_could_hold_is_refused() -> None:
    rig = Rig("a", blocks=10)
    rig.submit(1, prompt=4, tokens=37)
    assert isinstance(rig.answers.outcomes[0].error, Overloaded)
    rig["a"].lane.cut()  # not because one is away or busy
    rig.submit(1, prompt=4, tokens=36)
    assert 1 not in rig.answers.outcomes


def test_a_large_executor_that_is_away_is_waited_for() -> None:
    rig = Rig("a", "b", blocks=10)
    rig.batcher.set_executors({
        "a": ExecutorInfo(rig["a"], rig.capacity), "b": ExecutorInfo(rig["b"], {"m": ModelCapacity(2, 100, 4)})
    })  # fmt: skip
    rig["b"].lane.cut()
    rig.submit(1, tokens=100)
    assert not rig.answers.outcomes
    rig.submit(1)
    assert rig.running("a") == [1], "others pass"
    rig["b"].lane.mend()
    rig.tick(AWAY_S)
    assert rig.running("b") == [0]
    rig.run_all()
    rig.all_right()


def test_a_work_that_nobody_can_hold_any_more_blocks_nobody() -> None:
    rig = Rig("a", slots=1, blocks=100)
    rig.submit(1)
    rig.submit(1, tokens=300)
    rig.submit(1)
    rig.capacity = {"m": ModelCapacity(1, 10, 4)}
    rig.have("a")
    rig["a"].lane.run()
    assert isinstance(rig.answers.outcomes[1].error, Overloaded)
    assert rig.running("a") == [2]


def test_a_draining_batcher_hands_new_works_back() -> None:
    rig = Rig("a")
    rig.submit(1)
    rig.batcher.draining = True
    rig.submit(1, resumed=[1000])
    error = rig.answers.outcomes[1].error
    assert isinstance(error, StageUnavailable)
    assert DRAINING in error.metadata
    assert rig.answers.outcomes[1].output_tokens == 1
    rig["a"].lane.run()
    assert rig.answers.outcomes[0].finish is FinishReason.LENGTH


def test_a_sink_may_submit_from_within_an_outcome() -> None:
    """As a stage in the same process does."""
    rig = Rig("a", slots=1)

    class Eager(Answers):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            if work_id < 100:
                rig.lane.submit(work_id + 100, work(work_id + 100))

    rig.lane = rig.batcher.open(eager := Eager())
    rig["a"].lane.cut()
    rig.submit(2)
    rig["a"].lane.mend()  # and nobody has looked at the queue since
    rig.lane.cancel(0)
    rig.run_all()
    assert set(eager.outcomes) == {0, 1, 100, 101}
    rig.at_rest()


def test_works_that_ended_are_not_remembered_until_their_deadline() -> None:
    rig = Rig("a")
    for _ in range(3000):
        rig.submit(1, tokens=1)
        rig["a"].lane.run()
    rig.tick()
    assert len(rig.book.deadlines) <= 1024
    rig.have()
    rig.tick()
    assert not rig.book.pools


def test_a_cancel_that_comes_late_ends_no_later_run() -> None:
    rig = Rig("a", slots=1)
    rig.submit(1, tier=Tier.ASYNC)
    rig["a"].lane.step(count=2)
    rig.submit(1)
    (key,) = rig["a"].lane.cancels
    rig["a"].lane.end(key, Outcome(error=StageUnavailable("the engine died")))
    rig.run_all()
    assert 1 in rig.answers.outcomes
    rig.all_right()
    rig.submit(1)
    (key,) = rig["a"].lane.works
    rig["a"].lane.end(key, Outcome(error=Cancelled("of the run before")))
    rig.run_all()
    rig.all_right()


def test_a_sink_may_cancel_another_work_of_a_lost_executor() -> None:
    rig = Rig("a", slots=3, reply="later")
    rig.submit(3)
    rig.memory.answer()

    class Eager(Answers):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            for other in (1, 2):
                if other not in self.outcomes:
                    rig.lane.cancel(other)

    eager = Eager()
    rig.lane.sink = eager
    rig.lane.cancel(0)
    rig["a"].lane.cut()
    assert set(eager.outcomes) == {0, 1, 2}
    rig.memory.asked.clear()
    rig.at_rest()
