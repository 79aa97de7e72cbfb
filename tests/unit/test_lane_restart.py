"""An answer that begins anew: what every stage in front makes of it."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from headrace.lane.v1 import lane_pb2
from libs.clock import ManualClock
from libs.errors import StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import NOBODY, PATIENCE_S, Forwarder
from libs.lane.frame import Frame
from libs.lane.outbox import Outbox
from libs.lane.wire import frame_from_proto, message_to_proto, note_from_proto
from libs.lane.work import FinishReason, Note, Outcome
from tests.unit.lanes import Answers, HandStage, work


class Restarting(Answers):
    """Hears of it."""

    def on_note(self, work_id: int, note: Note) -> None:
        super().on_note(work_id, note)
        if note.restart:
            self.tokens[work_id] = []


def frame(work_id: int, offset: int, *tokens: int) -> Frame:
    made = Draft()
    made.add(work_id, offset, tokens)
    return Frame.of(made)


def test_a_forwarder_forgets_what_is_void_and_goes_on_with_what_is_new() -> None:
    stage, heard = HandStage(), Restarting()
    forwarder = Forwarder("admission", lambda work, ready: ready[0], ManualClock())
    forwarder.set_neighbours({"router-0": stage})
    lane = forwarder.open(heard)
    lane.submit(1, work(1))
    (number,) = stage.lane.works
    stage.lane.sink.on_note(number, Note("cheap@1"))
    stage.lane.sink.on_frame(frame(number, 0, 1, 2, 3))
    stage.lane.sink.on_note(number, Note("dear@1", restart=True, tried=("cheap",)))
    assert lane.passed(1) == 0
    stage.lane.sink.on_frame(frame(number, 0, 7, 8))
    assert heard.tokens[1] == [7, 8]
    stage.lane.cut()
    stage.lane.works.clear()
    stage.lane.ready = True
    stage.lane.submit = lambda work_id, work: sent.append(work)  # type: ignore[method-assign]
    sent: list = []  # type: ignore[type-arg]
    stage.lane.sink.on_ready()
    assert [(list(one.resumed), one.pool) for one in sent] == [([7, 8], "dear@1")]


def test_a_forgotten_work_says_nothing_more_and_frees_its_number() -> None:
    stage, heard = HandStage(), Answers()
    forwarder = Forwarder("router", lambda work, ready: ready[0], ManualClock())
    forwarder.set_neighbours({"batcher-0": stage})
    lane = forwarder.open(heard)
    lane.submit(1, work(1))
    (number,) = stage.lane.works
    lane.forget(1)
    lane.forget(1)
    assert stage.lane.cancels == [number]
    assert forwarder.in_flight == 0
    lane.submit(1, work(1))
    stage.lane.step(number)
    stage.lane.end(number)
    assert not heard.tokens
    assert not heard.outcomes
    stage.lane.run()
    assert heard.outcomes[1].finish is FinishReason.LENGTH


def test_an_error_says_how_many_tokens_have_passed_here() -> None:
    stage, heard = HandStage(), Answers()
    forwarder = Forwarder("router", lambda work, ready: ready[0], ManualClock())
    forwarder.set_neighbours({"batcher-0": stage})
    lane = forwarder.open(heard)
    for number, made in enumerate((0, 9)):
        lane.submit(number, work(number))
        (up,) = stage.lane.works
        if number:
            stage.lane.step(count=2)
        stage.lane.end(up, Outcome(error=StageUnavailable("x"), output_tokens=made))
    assert [heard.outcomes[number].output_tokens for number in range(2)] == [0, 2]


def test_who_finds_nobody_is_told_so() -> None:
    clock, heard = ManualClock(), Answers()
    forwarder = Forwarder("router", lambda work, ready: ready[0], clock)
    clock.advance(PATIENCE_S + 1)
    forwarder.open(heard).submit(1, work(1, resumed=[1000]))
    error = heard.outcomes[1].error
    assert error is not None
    assert NOBODY in error.metadata
    assert heard.outcomes[1].output_tokens == 1


def said(message: lane_pb2.ExchangeResponse, answers: Restarting) -> None:
    """As a lane reads it: notes first."""
    for note in message.notes:
        answers.on_note(note.work_id, note_from_proto(note))
    if message.HasField("frame"):
        answers.on_frame(frame_from_proto(message.frame))


@given(st.lists(st.sampled_from(["token", "other", "restart", "take", "waiting"]), max_size=40))
def test_whatever_accumulates_a_restart_stands_between_the_old_answer_and_the_new(events: list[str]) -> None:
    answers, right, made, other = Restarting(), list[int](), 0, 0

    async def play() -> None:
        nonlocal made, other, right
        outbox = Outbox(lambda: None)
        for event in events:
            match event:
                case "token":
                    made += 1
                    outbox.on_frame(frame(1, len(right), made))
                    right.append(made)
                case "other":
                    outbox.on_frame(frame(2, other, other))
                    other += 1
                case "restart":
                    outbox.on_note(1, Note("p@1", restart=True))
                    right = []
                case "waiting":
                    outbox.on_note(2, Note(waiting="for a slot"))
                case "take":
                    if outbox._messages:
                        said(message_to_proto(outbox.take()), answers)
        outbox.on_broken("that is all")
        while outbox:
            said(message_to_proto(outbox.take()), answers)

    asyncio.run(play())
    assert answers.tokens.get(1, []) == right
    assert len(answers.tokens.get(2, [])) == other
