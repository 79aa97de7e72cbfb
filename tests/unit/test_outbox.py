"""What accumulates on its way down a lane."""

from itertools import pairwise
from math import isnan

from hypothesis import given
from hypothesis import strategies as st

from headrace.lane.v1 import lane_pb2
from libs.errors import RequestInvalid, Violation
from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.joined import joined
from libs.lane.outbox import FRAME_TOKENS, NOTE_TOKENS, OUTCOME_TOKENS, Outbox
from libs.lane.wire import frame_from_proto, message_to_proto, note_from_proto, outcome_from_proto
from libs.lane.work import FinishReason, Note, Outcome
from libs.streams.call import MESSAGE_BYTES
from tests.unit.lanes import Answers

DONE = Outcome(FinishReason.LENGTH)


def frame(*entries: tuple[int, int, list[int]], log_probs: bool = False) -> Frame:
    made = Draft()
    for work_id, offset, tokens in entries:
        made.add(work_id, offset, tokens, [-1.0] * len(tokens) if log_probs else ())
    return Frame.of(made)


def said(message: lane_pb2.ExchangeResponse) -> list[tuple[int, int, list[int]]]:
    """What a receiver reads in its frame."""
    return [(number, offset, tokens) for number, offset, tokens, _ in frame_from_proto(message.frame).entries()]


class Woken:
    """Counts how often the writer is woken."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def drained(outbox: Outbox) -> list[lane_pb2.ExchangeResponse]:
    """Everything that is there."""
    return [message_to_proto(message) for message in iter(outbox.take, None)]


def test_one_frame_leaves_as_it_is() -> None:
    outbox = Outbox(Woken())
    outbox.on_frame(frame((1, 0, [10]), (2, 5, [20, 21])))
    (message,) = drained(outbox)
    assert said(message) == [(1, 0, [10]), (2, 5, [20, 21])]
    assert not message.outcomes


def test_what_comes_while_a_write_is_in_flight_leaves_as_one() -> None:
    outbox = Outbox(Woken())
    outbox.on_frame(frame((1, 0, [10])))
    (first,) = drained(outbox)
    assert said(first) == [(1, 0, [10])]
    for step in range(1, 4):  # the write takes three steps
        outbox.on_frame(frame((1, step, [10 + step]), (2, step - 1, [20 + step])))
    outbox.on_outcome(1, DONE)
    (message,) = drained(outbox)
    assert said(message) == [(1, 1, [11, 12, 13]), (2, 0, [21, 22, 23])]
    assert [outcome.work_id for outcome in message.outcomes] == [1]


def test_notes_leave_in_order_and_wake_the_writer() -> None:
    outbox = Outbox(woken := Woken())
    notes = [Note("m@1"), Note(waiting="m is being loaded on a"), Note("m@2", "m is loaded on demand")]
    for note in notes:
        outbox.on_note(1, note)
    assert woken.times == 2, "where a work went is told with its first tokens"
    (message,) = drained(outbox)
    assert [(note.work_id, note_from_proto(note)) for note in message.notes] == [(1, note) for note in notes]
    assert not message.HasField("frame")


def test_many_notes_stay_below_the_limit() -> None:
    outbox = Outbox(Woken())
    for work_id in range(2 * FRAME_TOKENS // NOTE_TOKENS):
        outbox.on_note(work_id, Note("a-model-with-a-long-name@12345678", "it is being loaded on executor-17, " * 5))
    messages = drained(outbox)
    assert len(messages) in (2, 3)
    assert all(message.ByteSize() < MESSAGE_BYTES for message in messages)


def test_an_empty_frame_wakes_nobody() -> None:
    outbox = Outbox(woken := Woken())
    outbox.on_frame(Frame())
    assert not woken.times
    assert drained(outbox) == []


def test_a_waiting_writer_is_woken() -> None:
    outbox = Outbox(woken := Woken())
    outbox.on_outcome(1, DONE)
    assert woken.times == 1
    assert outbox


def test_a_break_is_told_behind_what_had_accumulated() -> None:
    outbox = Outbox(woken := Woken())
    outbox.on_outcome(1, DONE)
    outbox.on_broken("gone")
    assert woken.times == 2
    assert outbox.take() is not None
    assert outbox.take() is None
    assert outbox.broken == "gone"


def test_works_that_ask_for_log_probs_share_frames_with_works_that_do_not() -> None:
    outbox = Outbox(Woken())
    outbox.on_frame(frame((1, 0, [10, 11])))
    outbox.on_frame(frame((2, 0, [20]), log_probs=True))
    outbox.on_frame(frame((1, 2, [12])))
    (message,) = drained(outbox)
    read = frame_from_proto(message.frame)
    by_token = dict(zip(read.token_ids.tolist(), read.log_probs.tolist(), strict=True))
    assert by_token[20] == -1.0
    assert all(isnan(by_token[token]) for token in (10, 11, 12))


def test_a_large_backlog_leaves_in_several_messages_each_below_the_limit() -> None:
    outbox, count = Outbox(Woken()), FRAME_TOKENS // 1000
    for step in range(3):
        for work_id in range(count):
            outbox.on_frame(frame((work_id, step * 1000, [2**32 - 1] * 1000), log_probs=True))
    messages = drained(outbox)
    assert len(messages) == 3
    assert all(message.ByteSize() < MESSAGE_BYTES for message in messages)


def test_many_failures_stay_below_the_limit() -> None:
    outbox = Outbox(Woken())
    error = RequestInvalid.of([Violation("chat.messages[0].role", "is required" * 10)] * 500)
    for work_id in range(2 * FRAME_TOKENS // OUTCOME_TOKENS):
        outbox.on_outcome(work_id, Outcome(error=error))
    messages = drained(outbox)
    assert len(messages) in (2, 3)
    assert all(message.ByteSize() < MESSAGE_BYTES for message in messages)


@given(st.lists(st.tuples(st.sampled_from("seet"), st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=40))
def test_however_it_is_cut_into_messages_every_promise_holds(moves: list[tuple[str, int, int, bool]]) -> None:
    outbox, answers = Outbox(Woken()), Answers()
    made: dict[int, int] = {}
    ended: set[int] = set()

    def take() -> None:
        message = message_to_proto(outbox.take())
        answers.on_frame(frame_from_proto(message.frame))  # a receiver takes the frame first
        for one in message.outcomes:
            answers.on_outcome(one.work_id, outcome_from_proto(one))

    for move, work_id, count, with_log_probs in moves:
        if move == "t" and outbox._messages:
            take()
        elif work_id in ended:
            continue
        elif move == "e":
            ended.add(work_id)
            outbox.on_outcome(work_id, DONE)
        else:
            start = made.get(work_id, 0)
            made[work_id] = start + count
            outbox.on_frame(frame((work_id, start, list(range(start, start + count))), log_probs=with_log_probs))
    while outbox._messages:
        take()
    assert {work_id: list(range(count)) for work_id, count in made.items()} == answers.tokens
    assert set(answers.outcomes) == ended


one_frame = st.tuples(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=5), st.booleans()
)


@given(st.lists(one_frame, min_size=1, max_size=5))
def test_joining_changes_nothing_of_what_each_work_is_told(
    parts: list[tuple[list[tuple[int, int, int]], bool]],
) -> None:
    token, frames = 0, []
    for entries, log_probs in parts:
        draft = Draft()
        for number, offset, count in entries:
            tokens = list(range(token, token + count))
            draft.add(number, offset, tokens, [float(one) for one in tokens] if log_probs else ())
            token += count
        frames.append(Frame.of(draft))
    result = joined(frames)
    assert _by_work([result]) == _by_work(frames)
    read = dict(zip(result.token_ids.tolist(), result.log_probs.tolist(), strict=bool(len(result.log_probs))))
    for one in frames:
        for name, value in zip(one.token_ids.tolist(), one.log_probs.tolist(), strict=False):
            assert repr(read[name]) == repr(value)
    if len(frames) > 1:
        left = list(result.entries())
        ends = [
            (number, offset + len(tokens)) == (following, begins)
            for (number, offset, tokens, _), (following, begins, _, _) in pairwise(left)
        ]
        assert not any(ends), "one continues the other"


def _by_work(frames: list[Frame]) -> dict[int, list[tuple[int, int]]]:
    """Position and token, as they come to each work."""
    told: dict[int, list[tuple[int, int]]] = {}
    for one in frames:
        for number, offset, tokens, _ in one.entries():
            told.setdefault(number, []).extend(enumerate(tokens, offset))
    return {number: all_told for number, all_told in told.items() if all_told}
