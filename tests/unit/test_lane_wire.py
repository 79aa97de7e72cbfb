"""What travels on a lane, into messages and back."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.lane.v1 import lane_pb2
from libs.errors import Overloaded
from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.progress import Progress
from libs.lane.wire import (
    decision_from_proto,
    decision_to_proto,
    frame_from_proto,
    frame_to_proto,
    note_from_proto,
    note_to_proto,
    outcome_from_proto,
    outcome_to_proto,
    queue_from_proto,
    queue_to_proto,
    work_from_proto,
    work_to_proto,
)
from libs.lane.work import Decision, FinishReason, Grammar, Note, Outcome, QueueState, Sampling, Tier, Work
from tests.unit.lanes import work

ids = st.integers(0, 2**63 - 1)
token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
singles = st.none() | st.floats(-10, 10, width=32)
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 2**32 - 1),
    temperature=singles,
    top_p=singles,
    top_k=st.none() | st.integers(0, 2**32 - 1),
    seed=st.none() | ids,
    repetition_penalty=singles,
    presence_penalty=singles,
    frequency_penalty=singles,
    ignore_end=st.booleans(),
)
works = st.builds(
    Work,
    request_id=texts,
    tenant=texts,
    tier=st.sampled_from(Tier),
    model=texts,
    prompt=token_ids,
    sampling=samplings,
    deadline=st.integers(0, 4 * 10**15).map(lambda micros: micros / 1e6),
    pool=texts,
    resumed=token_ids,
    block_hashes=st.lists(ids, max_size=5),
    block_tokens=st.integers(0, 256),
    grammar=st.none() | st.builds(Grammar, st.sampled_from(["json_schema", "regex", "ebnf"]), texts),
    log_probs=st.booleans(),
    traceparent=texts,
    adapter=texts,
    salt=texts,
    chat=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", ""]), texts), max_size=3).map(tuple),
)


def through(message: lane_pb2.Work) -> lane_pb2.Work:
    """Over the wire."""
    return lane_pb2.Work.FromString(message.SerializeToString())


@given(ids, works)
@example(0, work(prompt=0, deadline=12.454415, resumed=[], block_hashes=[]))
def test_a_work_comes_back_the_same(work_id: int, one: Work) -> None:
    message = through(work_to_proto(work_id, one))
    assert message.work_id == work_id
    assert work_from_proto(message) == one


@given(ids, st.builds(Note, pool=texts, waiting=texts))
def test_a_note_comes_back_the_same(work_id: int, note: Note) -> None:
    message = lane_pb2.Note.FromString(note_to_proto(work_id, note).SerializeToString())
    assert message.work_id == work_id
    assert note_from_proto(message) == note


def test_zero_is_not_unset() -> None:
    sampling = Sampling(5, temperature=0.0, top_k=0, seed=0)
    assert work_from_proto(through(work_to_proto(1, work(sampling=sampling)))).sampling == sampling


def test_a_deadline_does_not_drift_from_hop_to_hop() -> None:
    first = one = work(deadline=1_700_000_000.1234567)
    for _ in range(5):
        one = work_from_proto(work_to_proto(1, one))
    assert abs(one.deadline - first.deadline) < 1e-6


@given(
    st.lists(st.tuples(ids, st.integers(0, 2**32 - 1), token_ids, st.booleans()), max_size=8),
)
def test_a_frame_comes_back_the_same(entries: list[tuple[int, int, list[int], bool]]) -> None:
    draft = Draft()
    for work_id, offset, tokens, with_log_probs in entries:
        draft.add(work_id, offset, tokens, [-0.5] * len(tokens) if with_log_probs else ())
    frame = Frame.of(draft)
    assert not len(frame.log_probs) or len(frame.log_probs) == len(frame.token_ids)
    back = frame_from_proto(lane_pb2.Frame.FromString(frame_to_proto(frame).SerializeToString()))
    assert repr(list(back.entries())) == repr(list(frame.entries()))  # NaN is not equal to itself


@given(st.lists(st.tuples(ids, st.integers(0, 9), token_ids, st.booleans(), st.one_of(st.none(), ids)), max_size=8))
def test_some_entries_of_a_frame_under_other_numbers(
    entries: list[tuple[int, int, list[int], bool, int | None]],
) -> None:
    draft = Draft()
    for work_id, offset, tokens, with_log_probs, _ in entries:
        draft.add(work_id, offset, tokens, [-0.5] * len(tokens) if with_log_probs else ())
    frame = Frame.of(draft)
    chosen = [(place, entry[-1]) for place, entry in enumerate(entries) if entry[-1] is not None]
    whole = list(frame.entries())
    wanted = [(number, *whole[place][1:]) for place, number in chosen]
    found = frame.chosen([place for place, _ in chosen], [number for _, number in chosen])
    assert repr(list(found.entries())) == repr(wanted)


FRAME = {"work_ids": bytes(16), "offsets": bytes(8), "counts": b"\1\0\0\0\2\0\0\0", "token_ids": bytes(12)}


@pytest.mark.parametrize(
    "broken",
    [
        {"work_ids": bytes(8)},
        {"work_ids": bytes(15)},
        {"offsets": bytes(12)},
        {"counts": bytes(4)},
        {"counts": bytes(8)},
        {"counts": b"\xff" * 8},
        {"token_ids": bytes(16)},
        {"token_ids": bytes(11)},
        {"log_probs": bytes(8)},
        {"log_probs": bytes(13)},
    ],
)
def test_a_frame_whose_arrays_do_not_agree_is_refused(broken: dict[str, bytes]) -> None:
    assert len(frame_from_proto(lane_pb2.Frame(**FRAME))) == 2
    with pytest.raises(ValueError, match=r"frame|buffer"):
        frame_from_proto(lane_pb2.Frame(**{**FRAME, **broken}))


def test_log_probs_are_padded_where_a_work_did_not_ask() -> None:
    frame = Draft()
    frame.add(1, 0, [10, 11])
    frame.add(2, 0, [20], [-1.0])
    frame.add(3, 0, [30])
    assert repr(frame.log_probs) == "[nan, nan, -1.0, nan]"
    assert repr(Frame.of(frame).log_probs.tolist()) == "[nan, nan, -1.0, nan]"


@given(
    ids,
    st.builds(
        Outcome,
        finish=st.sampled_from(FinishReason),
        output_tokens=st.integers(0, 2**32 - 1),
        cached_tokens=st.integers(0, 2**32 - 1),
        queued_s=st.integers(0, 10**12).map(lambda micros: micros / 1e6),
        executor=texts,
    ),
)
def test_an_outcome_comes_back_the_same(work_id: int, outcome: Outcome) -> None:
    message = outcome_to_proto(work_id, outcome)
    assert message.work_id == work_id
    assert outcome_from_proto(message) == outcome


def test_a_failure_comes_back_with_its_error() -> None:
    error = Overloaded("full", retry_after_s=1.5, metadata={"request_id": "r"})
    back = outcome_from_proto(outcome_to_proto(1, Outcome(error=error, output_tokens=3)))
    assert back.finish is None
    assert isinstance(back.error, Overloaded)
    assert (back.error.message, back.error.retry_after_s, back.output_tokens) == ("full", 1.5, 3)


def test_an_outcome_is_one_of_two() -> None:
    with pytest.raises(ValueError):
        Outcome()
    with pytest.raises(ValueError):
        Outcome(FinishReason.STOP, Overloaded("x"))


def test_decisions_and_queues_come_back_the_same() -> None:
    decision = Decision("batcher", "wait", "all slots are taken")
    assert decision_from_proto(decision_to_proto(decision)) == decision
    queue = QueueState("batcher-0", "m", Tier.ASYNC, 1, 2, 3, 4)
    assert queue_from_proto(queue_to_proto(queue)) == queue


def test_a_work_goes_on_behind_what_it_came_with() -> None:
    first, later = work(), work(resumed=[1, 2])
    assert Progress(first).resume() is first
    assert Progress(later).resume() == replace(later, resumed=(1, 2))


@pytest.mark.parametrize("field", ["prompt_token_ids", "resumed_token_ids", "block_hashes"])
def test_a_work_with_half_an_integer_is_refused(field: str) -> None:
    message = work_to_proto(1, work(resumed=[1], block_hashes=[2**64 - 1]))
    assert work_from_proto(message) == work(resumed=[1], block_hashes=[2**64 - 1])
    setattr(message, field, b"\1\2\3")
    with pytest.raises(ValueError, match="buffer"):
        work_from_proto(message)
