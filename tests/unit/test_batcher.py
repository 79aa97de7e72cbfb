"""The batcher, driven by hand: a manual clock, executors and a KV-cache manager that do what the test says."""

from collections import Counter

import pytest

from libs.errors import Cancelled, DeadlinePassed, InternalError, NoExecutor, Overloaded, StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import DRAINING
from libs.lane.frame import Frame
from libs.lane.work import POOL_GONE, FinishReason, Note, Outcome, Tier
from services.batcher.dispatch import AWAY_S, SHUT_S
from services.batcher.executors import ExecutorInfo
from services.batcher.memory import Reply
from services.batcher.queue import AGE_S
from services.batcher.seat import Affinity, ModelCapacity, Seat
from services.batcher.stage import ATTEMPTS
from tests.unit.batching import NO, YES, Rig
from tests.unit.lanes import Answers, answer, work


def test_works_run_in_free_slots_and_the_others_wait() -> None:
    rig = Rig("a", "b")
    rig.submit(6)
    assert sorted(rig.running("a") + rig.running("b")) == [0, 1, 2, 3]
    rig.run_all()
    rig.all_right()


def test_a_slot_that_is_free_goes_to_the_head_of_the_queue() -> None:
    rig = Rig("a", slots=1)
    rig.submit(1)
    rig.submit(1, tier=Tier.ASYNC)
    rig.submit(1)
    rig["a"].lane.run()
    assert rig.running("a") == [2]
    rig["a"].lane.run()
    assert rig.running("a") == [1]
    rig["a"].lane.run()
    rig.all_right()


def test_async_work_ages() -> None:
    rig = Rig("a", slots=1)
    rig.submit(1)
    rig.submit(1, tier=Tier.ASYNC)
    rig.clock.advance(1)
    rig.submit(1)
    rig.clock.advance(AGE_S)
    rig["a"].lane.run()
    assert rig.running("a") == [1]


def test_blocks_bound_what_runs_too() -> None:
    rig = Rig("a", slots=8, blocks=7)
    rig.submit(3, prompt=4, tokens=8)  # 3 blocks each
    assert rig.running("a") == [0, 1]
    rig.run_all()
    rig.all_right()


def test_queued_time_is_all_the_time_in_the_queue() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    rig.clock.advance(3)
    rig["a"].lane.run()
    rig.clock.advance(5)
    rig["a"].lane.cut()
    rig.clock.advance(2)
    rig["a"].lane.mend()
    rig.tick()
    rig["a"].lane.run()
    assert [rig.answers.outcomes[i].queued_s for i in (0, 1)] == [0.0, 5.0]


@pytest.mark.parametrize("reply", [YES, None])
def test_without_a_manager_it_goes_on_by_load_alone(reply: Reply | None) -> None:
    rig = Rig("a", reply=reply)
    rig.submit(5)
    rig.run_all()
    rig.all_right()


def test_a_late_answer_starts_the_work_late() -> None:
    rig = Rig("a", reply="later")
    rig.submit(3)
    assert rig.running("a") == []
    assert len(rig.memory.asked) == 2, "the slots are taken while the manager is asked"
    rig.memory.answer()
    assert rig.running("a") == [0]
    rig.memory.answer(None)
    assert rig.running("a") == [0, 1]


def test_a_refused_reservation_waits_and_goes_on() -> None:
    rig = Rig("a", reply=NO)
    rig.submit(3)
    assert rig.running("a") == []
    for _ in range(20):
        rig.tick(SHUT_S / 10)
    assert len(rig.memory.used) < 6, "it asks again and again"
    rig.memory.reply = YES
    rig.tick(SHUT_S)
    assert rig.running("a") == [0, 1]
    rig.run_all()
    rig.all_right()


def test_a_refused_reservation_tries_another_executor() -> None:
    rig = Rig("a", "b", reply="later")
    rig.submit(1)
    rig.memory.answer(NO)
    rig.tick()
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "b"


def test_refused_works_keep_their_order() -> None:
    rig = Rig("a", slots=3, reply="later")
    rig.submit(4)
    for _ in range(3):
        rig.memory.answer(NO)
    rig.memory.reply = YES
    rig.tick(SHUT_S)
    assert rig.running("a") == [0, 1, 2]


def test_the_answer_to_an_old_question_is_not_taken_for_the_new_one() -> None:
    rig = Rig("a", slots=1, reply="later")
    rig.submit(1)
    rig["a"].lane.cut()
    rig["a"].lane.mend()
    rig.tick()
    assert len(rig.memory.asked) == 2
    rig.memory.answer(YES, 0)  # to the question before the break
    assert rig.running("a") == []
    assert not rig.memory.reserved
    rig.memory.answer(YES, 0)
    assert rig.running("a") == [0]
    assert len(rig.memory.reserved) == 1
    rig.run_all()
    rig.all_right()


def test_an_executor_that_goes_while_the_manager_is_asked_gets_nothing() -> None:
    rig = Rig("a", reply="later")
    rig.submit(1)
    gone = rig["a"].lane
    rig.have("b")
    rig.memory.answer()
    assert not gone.sent
    assert gone.closed
    rig.tick()
    rig.memory.answer()
    assert rig.running("b") == [0]
    rig.run_all()
    rig.all_right()


def test_the_works_of_a_lost_executor_go_to_the_front_in_order() -> None:
    rig = Rig("a", slots=3)
    rig.submit(5)
    rig["a"].lane.step(count=2)
    lane = rig["a"].lane
    lane.cut()
    lane.mend()
    rig.tick()
    assert rig.running("a") == [0, 1, 2]
    assert [len(w.resumed) for w in lane.works.values()] == [2, 2, 2]
    rig.run_all()
    rig.all_right()


def test_a_whole_answer_without_its_outcome_needs_no_second_run() -> None:
    rig = Rig("a")
    rig.submit(1)
    rig["a"].lane.step(count=8)
    rig["a"].lane.cut()
    rig.all_right()


def test_an_executor_at_a_new_place_is_a_new_one_and_the_old_one_may_finish() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    old = rig["a"].lane
    del rig.stages["a"]
    rig.have("a")
    rig.have("a")
    assert rig.running("a") == [1]
    assert old.ready
    old.run()
    assert old.closed
    assert len(rig.book.executors) == 1
    rig.run_all()
    rig.all_right()


def test_an_executor_that_lost_the_model_is_not_asked_in_a_loop() -> None:
    rig = Rig("a")
    rig.submit(2)
    for _ in range(3 * ATTEMPTS):
        for key in list(rig["a"].lane.works):
            rig["a"].lane.end(key, Outcome(error=NoExecutor("not here")))
        sent = len(rig["a"].lane.sent)
        rig.tick(SHUT_S / 2)
        assert len(rig["a"].lane.sent) == sent, "asked again at once"
        rig.tick(SHUT_S)
    assert not rig.answers.outcomes, "it never ran, so it is not to blame"
    rig.run_all()
    rig.all_right()


def test_what_a_draining_executor_hands_back_goes_elsewhere_and_counts_for_nothing() -> None:
    rig = Rig("a")
    rig.submit(1)
    for _ in range(2 * ATTEMPTS):
        (key,) = rig["a"].lane.works
        rig["a"].lane.end(key, Outcome(error=StageUnavailable("draining", metadata={DRAINING: "true"})))
        rig.tick(2 * SHUT_S)
    rig.have("a", "b")
    (key,) = rig["a"].lane.works
    rig["a"].lane.end(key, Outcome(error=StageUnavailable("draining", metadata={DRAINING: "true"})))
    assert rig.running("b") == [0]


@pytest.mark.parametrize("how", ["cut", "refuse"])
def test_a_work_that_kills_engines_is_given_up(how: str) -> None:
    rig = Rig("a")
    rig.submit(1)
    for _ in range(ATTEMPTS):
        assert not rig.answers.outcomes
        lane = rig["a"].lane
        if how == "cut":
            lane.cut()
            lane.mend()
        else:
            lane.end(next(iter(lane.works)), Outcome(error=StageUnavailable("the engine died")))
        rig.tick(2 * SHUT_S)
    error = rig.answers.outcomes[0].error
    assert isinstance(error, StageUnavailable)
    assert len(rig["a"].lane.sent) == ATTEMPTS
    rig.at_rest()


def test_a_work_that_comes_on_is_not_given_up() -> None:
    rig = Rig("a")
    rig.submit(1, tokens=ATTEMPTS + 3)
    for _ in range(ATTEMPTS + 2):
        rig["a"].lane.step()
        rig["a"].lane.cut()
        rig["a"].lane.mend()
        rig.tick()
    rig.run_all()
    rig.all_right()


def test_a_bug_of_the_engine_passes() -> None:
    rig = Rig("a")
    rig.submit(1)
    (key,) = rig["a"].lane.works
    rig["a"].lane.end(key, Outcome(error=InternalError("a bug")))
    assert isinstance(rig.answers.outcomes[0].error, InternalError)
    rig.at_rest()


def test_behind_a_gap_the_answer_ends_and_not_before_the_tokens_in_front_of_it() -> None:
    rig = Rig("a")
    rig.submit(1)
    lane = rig["a"].lane
    (key,) = lane.works
    right, frame = answer(rig.works[0]), Draft()
    frame.add(key, 0, right[:2])
    frame.add(key, 5, right[5:6])
    lane.sink.on_frame(Frame.of(frame))
    assert rig.answers.tokens[0] == right[:2]
    assert isinstance(rig.answers.outcomes[0].error, InternalError)
    assert lane.cancels == [key]
    lane.end(key, Outcome(error=Cancelled("as asked")))
    rig.at_rest()


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


def test_resumed_works_come_in_in_front_and_in_order() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    for index in (2, 3):
        rig.submit(1, resumed=[1000 * index])
    for expected in (0, 2, 3, 1):
        assert rig.running("a") == [expected]
        rig["a"].lane.run()


def test_cached_tokens_are_of_the_prompt() -> None:
    rig = Rig("a")
    rig.submit(1, prompt=4)
    (key,) = rig["a"].lane.works
    rig["a"].lane.end(key, Outcome(FinishReason.STOP, cached_tokens=9))
    assert rig.answers.outcomes[0].cached_tokens == 4


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


async def test_queues_and_explain_say_what_is() -> None:
    rig = Rig("a", slots=1)
    assert [d.choice for d in await rig.batcher.explain(work())] == ["no wait", "executor a", "run"]
    rig.submit(2)
    rig.submit(1, tier=Tier.ASYNC)
    rig.clock.advance(2)
    interactive, patient = await rig.batcher.queues()
    assert (interactive.tier, interactive.waiting, interactive.running) == (Tier.INTERACTIVE, 1, 1)
    assert (interactive.waiting_tokens, interactive.oldest_waiting_ms) == (4, 2000)
    assert (patient.tier, patient.waiting, patient.running) == (Tier.ASYNC, 1, 0)
    queue, choice = await rig.batcher.explain(work())
    assert (queue.choice, choice.choice) == ("queue", "wait")
    assert "2 works wait" in queue.reason


# --- pools without a copy ------------------------------------------------------------------------


class Cold(Rig):
    """A batcher whose pools have no copy yet; counts how often placement is to be told."""

    def __init__(self, *executors: str) -> None:
        super().__init__(*executors)
        self.capacity = {}
        self.coming: dict[str, str] = {}
        self.leaving: frozenset[str] = frozenset()
        self.starved = 0
        self.batcher.starved = self._starved
        self.say()

    def say(self) -> None:
        """The registry says this of the first executor."""
        infos = {
            name: ExecutorInfo(stage, self.capacity, self.coming, self.leaving) for name, stage in self.stages.items()
        }
        self.batcher.set_executors(infos)

    def come(self, why: str) -> None:
        self.coming = {"m": why}
        self.say()

    def _starved(self) -> None:
        self.starved += 1

    def notes(self, index: int = 0) -> list[str]:
        return [note.waiting for note in self.answers.notes.get(index, [])]


def test_a_work_without_a_copy_waits_and_is_told_of_each_change_once() -> None:
    rig = Cold("a")
    rig.submit(1)
    assert rig.notes() == ["no executor has m yet"]
    assert rig.starved == 1
    for _ in range(3):
        rig.come("waits to be loaded")
        rig.tick(1)
    rig.come("is being loaded")
    rig.submit(1)
    assert rig.notes(1) == ["m is being loaded on a"], "one that comes later is told how it stands"
    rig.tick(1)
    assert rig.notes() == ["no executor has m yet", "m waits to be loaded on a", "m is being loaded on a"]
    rig.coming, rig.capacity = {}, {"m": ModelCapacity(2, 100, 4)}
    rig.say()
    assert rig.running("a") == [1, 0], "the one that is late already goes behind"
    assert len(rig.notes()) == 3, "that it runs, its tokens say"
    assert rig.starved == 2
    assert all(isinstance(note, Note) and not note.pool for note in rig.answers.notes[0])
    rig.run_all()
    rig.all_right()


def test_a_work_that_waits_for_a_slot_is_told_nothing() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    rig.tick(1)
    assert not rig.answers.notes


def test_those_whose_only_copy_goes_are_told() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    lane = rig["a"].lane
    rig.capacity = {}
    rig.have("a")
    assert [note.waiting for note in rig.answers.notes[1]] == ["no executor has m yet"]
    assert 0 not in rig.answers.notes, "it runs"
    lane.cut()
    lane.mend()
    rig.tick()
    rig.capacity = {"m": ModelCapacity(2, 100, 4)}
    rig.have("a")
    rig.run_all()
    rig.all_right()


def test_a_deadline_ends_the_wait_for_a_copy() -> None:
    rig = Cold()
    rig.submit(1, deadline=rig.clock.now() + 5)
    rig.tick(5)
    error = rig.answers.outcomes[0].error
    assert isinstance(error, DeadlinePassed)
    assert error.metadata["stage"] == "queue"
    assert error.metadata["waiting"] == "no executor has m yet"
    assert error.message == "the deadline passed after 5.0 s in the queue: no executor has m yet"
    rig.at_rest()


def test_a_version_that_is_withdrawn_hands_back_what_waits_for_it() -> None:
    rig = Cold("a")
    rig.batcher.set_versions(frozenset({"m", "n"}))
    rig.submit(3)
    rig.submit(1, resumed=[3000])
    rig.batcher.set_versions(frozenset({"n"}))
    assert set(rig.answers.outcomes) == {0, 1, 2, 3}
    for index, outcome in rig.answers.outcomes.items():
        assert isinstance(outcome.error, NoExecutor)
        assert outcome.error.metadata[POOL_GONE] == "true"
        assert outcome.output_tokens == (index == 3), "by this, the router sees who may begin anew"
    rig.at_rest()


@pytest.mark.parametrize("how", ["ready", "coming", "leaving"])
def test_a_version_lives_as_long_as_a_copy_does(how: str) -> None:
    rig = Cold("a", "b")
    rig["a"].lane.cut()
    rig["b"].lane.cut()
    if how == "ready":
        rig.capacity = {"m": ModelCapacity(2, 100, 4)}
    elif how == "coming":
        rig.coming = {"m": "is being loaded"}
    else:
        rig.leaving = frozenset({"m"})
    rig.say()
    rig.submit(1)
    rig.batcher.set_versions(frozenset({"other"}))
    rig.tick(1)
    assert not rig.answers.outcomes
    rig.capacity, rig.coming, rig.leaving = {}, {}, frozenset()
    rig.say()
    assert POOL_GONE in rig.answers.outcomes[0].error.metadata  # type: ignore[union-attr]


def test_what_runs_on_a_version_that_is_withdrawn_ends_there() -> None:
    rig = Rig("a")
    rig.submit(1)
    rig.batcher.set_versions(frozenset())
    rig.capacity = {}
    rig.have("a")
    assert not rig.answers.outcomes
    rig["a"].lane.run()
    rig.all_right()


def test_before_the_catalogue_is_known_nothing_is_withdrawn() -> None:
    rig = Cold()
    rig.submit(1)
    rig.tick(100)
    assert not rig.answers.outcomes


def test_a_sink_may_end_another_work_while_its_pool_is_withdrawn() -> None:
    rig = Cold()
    rig.batcher.set_versions(frozenset({"m"}))

    class Eager(Answers):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            rig.lane.cancel(work_id + 1)

    rig.lane = rig.batcher.open(eager := Eager())
    rig.submit(3)
    rig.batcher.set_versions(frozenset())
    assert set(eager.outcomes) == {0, 1, 2}
    rig.at_rest()


def test_demands_say_what_is_asked_of_each_model() -> None:
    rig = Rig("a", slots=1)
    rig.batcher.set_versions(frozenset({"m@1", "m@2", "n@1"}))
    rig.capacity = {"m@1": ModelCapacity(1, 100, 4)}
    rig.have("a")
    rig.submit(3, pool="m@1")
    rig.submit(1, pool="m@2")
    rig.submit(1, pool="n@1")
    rig.clock.advance(7)
    rig.submit(1, pool="m@2")
    of_m, of_n = rig.batcher.demands()
    assert (of_m.model, of_m.requests, of_m.running, of_m.waiting) == ("m", 5, 1, 4)
    assert (of_m.oldest_waiting_s, of_m.queued_s, of_m.last_request) == (7.0, 0.0, rig.clock.now())
    assert (of_n.model, of_n.requests, of_n.waiting, of_n.last_request) == ("n", 1, 1, rig.clock.now() - 7)
    rig["a"].lane.run()
    assert rig.batcher.demands()[0].queued_s == 7.0
    rig.batcher.set_versions(frozenset({"n@1"}))
    assert [demand.model for demand in rig.batcher.demands()] == ["n"]


# --- adapters ------------------------------------------------------------------------------------


def affinity(slots: int, adapter: str, runs: dict[str, int], lies: frozenset[str] = frozenset()) -> Affinity:
    """How well an adapter goes with a copy on which these run and those lie."""
    seat = Seat("a", ModelCapacity(8, 100, 4, slots, lies))
    seat.adapters = Counter(runs)
    return seat.affinity(adapter)


LIES = frozenset({"a", "b"})


@pytest.mark.parametrize(
    ("slots", "adapter", "runs", "expected"),
    [
        (0, "", {"": 3}, Affinity.RUNS),
        (1, "", {}, Affinity.LIES), (1, "", {"": 1}, Affinity.RUNS), (1, "", {"a": 1}, Affinity.TAKEN),
        (1, "a", {}, Affinity.LIES), (1, "c", {}, Affinity.ROOM), (1, "a", {"a": 2}, Affinity.RUNS),
        (1, "a", {"b": 1}, Affinity.TAKEN), (1, "a", {"": 1}, Affinity.TAKEN),
        (2, "", {"a": 1, "b": 1}, Affinity.RUNS),
        (2, "a", {"b": 1}, Affinity.LIES), (2, "c", {"b": 1}, Affinity.ROOM),
        (2, "c", {"a": 1, "b": 1}, Affinity.TAKEN),
        (2, "a", {"": 5, "b": 1}, Affinity.LIES),  # the base takes no adapter's place
        (2, "a", {"": 5, "b": 1, "c": 1}, Affinity.TAKEN),
    ],
)  # fmt: skip
def test_how_well_an_adapter_goes_with_a_copy(
    slots: int, adapter: str, runs: dict[str, int], expected: Affinity
) -> None:
    assert affinity(slots, adapter, runs, LIES) is expected


def test_works_go_where_their_adapter_is() -> None:
    rig = Rig("a", "b")
    infos = {
        name: ExecutorInfo(stage, {"m": ModelCapacity(4, 100, 4, 1, frozenset(lies))})
        for (name, stage), lies in zip(rig.stages.items(), ({"x@1"}, {"y@1"}), strict=True)
    }
    rig.batcher.set_executors(infos)
    for adapter in ("y@1", "x@1", "y@1", "x@1"):
        rig.submit(1, adapter=adapter)
    assert (rig.running("a"), rig.running("b")) == ([1, 3], [0, 2])
    assert {one.adapter for one in rig["a"].lane.sent} == {"x@1"}
    rig.submit(2, adapter="x@1")
    assert rig.running("a") == [1, 3, 4, 5], "as long as it is not much busier"
    rig.submit(1, adapter="x@1")
    assert rig.running("b") == [0, 2, 6]
    rig.run_all()
    rig.all_right()


async def test_explain_counts_the_adapter_in() -> None:
    rig = Rig("a", "b")
    rig.batcher.set_executors({
        "a": ExecutorInfo(rig["a"], {"m": ModelCapacity(4, 100, 4, 1)}),
        "b": ExecutorInfo(rig["b"], {"m": ModelCapacity(4, 100, 4, 1, frozenset({"x@1"}))}),
    })  # fmt: skip
    _, choice, _ = await rig.batcher.explain(work(adapter="x@1"))
    assert choice.choice == "executor b"
    assert "the adapter is in memory" in choice.reason


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


def test_who_never_ran_pays_nothing_and_who_ran_pays_once() -> None:
    rig = Rig("a", slots=1, reply="later")
    served = rig.book.pool("m").counters.served
    rig.submit(1, prompt=10, tokens=8)
    assert served("t") == 10 + 2 * 8, "in advance"
    rig.memory.answer(NO)
    assert served("t") == 0
    rig.memory.reply = YES
    rig.tick(SHUT_S)
    rig["a"].lane.step(count=3)
    rig["a"].lane.cut()
    rig["a"].lane.mend()
    rig.tick()
    rig["a"].lane.step(count=1)
    (key,) = rig["a"].lane.works
    rig["a"].lane.end(key, Outcome(FinishReason.STOP, output_tokens=4))
    assert served("t") == 10 + 2 * 4


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
