"""Passing a frame on: the quick way and the general way are the same way."""

from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from libs.lane.passing import _pass_on_sorted, _pass_on_whole, pass_on
from libs.lane.progress import Progress
from libs.lane.work import Frame
from tests.unit.lanes import Answers, answer, work


@dataclass(eq=False)
class Lane:
    sink: Answers = field(default_factory=Answers)


@dataclass(eq=False)
class Passage:
    lane: Lane
    down_id: int
    progress: Progress
    streaming: bool = True


class World:
    """Works 0 to 3 on two lanes in front; the last one is not wanted any more."""

    def __init__(self) -> None:
        self.lanes = [Lane(), Lane()]
        self.passages = {
            up_id: Passage(self.lanes[up_id // 2], 10 + up_id, Progress(work(up_id, tokens=20)), up_id != 3)
            for up_id in range(4)
        }

    def seen(self) -> object:
        return (
            [(lane.sink.tokens, lane.sink.log_probs) for lane in self.lanes],
            [passage.progress.tokens for passage in self.passages.values()],
        )


def frame_of(entries: list[tuple[int, int, int]], log_probs: bool) -> Frame:
    frame = Frame()
    for up_id, offset, count in entries:
        frame.add(
            up_id,
            offset,
            answer(work(up_id, tokens=30))[offset : offset + count],
            [-float(offset + n) for n in range(count)] if log_probs else (),
        )
    return frame


entries = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 4)), max_size=6)


@given(st.lists(st.tuples(entries, st.booleans()), max_size=6))
@example([([(0, 0, 2), (1, 0, 0)], False)])
@example([([(1, 0, 1), (1, 0, 1)], False)])
@example([([(0, 0, 1), (1, 0, 1)], True), ([(1, 1, 3), (0, 1, 1)], True)])
def test_both_ways_lead_to_the_same(frames: list[tuple[list[tuple[int, int, int]], bool]]) -> None:
    quick, general = World(), World()
    for entries, log_probs in frames:
        one = frame_of(entries, log_probs)
        gaps = pass_on(one, quick.passages)
        expected = _pass_on_sorted(one, general.passages)
        assert {passage.down_id for passage in gaps} == {passage.down_id for passage in expected}
        assert quick.seen() == general.seen()
        assert one == frame_of(entries, log_probs), "a frame is only lent"
    for up_id, passage in quick.passages.items():
        assert passage.progress.tokens == answer(work(up_id, tokens=30))[: len(passage.progress.tokens)]
    assert not quick.passages[3].progress.tokens


def test_the_usual_frame_goes_the_quick_way() -> None:
    world = World()
    assert _pass_on_whole(frame_of([(0, 0, 1), (1, 0, 1)], False), world.passages)
    assert _pass_on_whole(frame_of([(1, 1, 3), (0, 1, 2)], True), world.passages)
    assert world.lanes[0].sink.tokens == {10: [0, 1, 2], 11: [1000, 1001, 1002, 1003]}


def test_anything_unusual_does_not_and_leaves_no_trace() -> None:
    world = World()
    before = repr(world.seen())
    for entries in (
        [],
        [(4, 0, 1)],
        [(0, 0, 1), (4, 0, 1)],  # an unknown one
        [(0, 0, 1), (2, 0, 1)],  # two lanes
        [(2, 0, 1), (3, 0, 1)],  # one that is not wanted
        [(0, 0, 1), (1, 1, 1)],  # a gap
        [(0, 0, 1), (0, 1, 1)],  # twice
        [(0, 0, 1), (0, 0, 1)],  # and the same
    ):
        assert not _pass_on_whole(frame_of(entries, False), world.passages)
    assert repr(world.seen()) == before
