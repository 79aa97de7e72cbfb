"""The batcher, driven by hand: where works run, whom it asks, and what becomes of them when an executor is lost."""

import pytest

from libs.errors import Cancelled, InternalError, NoExecutor, StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import DRAINING
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Outcome, Tier
from services.batcher.dispatch import SHUT_S
from services.batcher.memory import Reply
from services.batcher.queue import AGE_S
from services.batcher.stage import ATTEMPTS
from tests.unit.batching import NO, YES, Rig
from tests.unit.lanes import answer, work


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
