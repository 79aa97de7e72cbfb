"""Passing a frame on: the quick way and the general way are the same way."""

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.passages import LEAST_TOKENS, LOG_FRAMES, ROWS, Passages
from libs.lane.passing import _pass_on_sorted, _pass_on_whole, pass_on
from libs.lane.progress import Progress
from tests.unit.lanes import Answers, answer, work


@dataclass(eq=False)
class Lane:
    sink: Answers = field(default_factory=Answers)


@dataclass(eq=False)
class Passage:
    lane: Lane
    down_id: int
    progress: Progress


BEHIND, ELSEWHERE = "behind", "elsewhere"


class World:
    """Works 1 to 5 on two lanes in front; the fourth is not wanted any more, the fifth runs elsewhere."""

    def __init__(self) -> None:
        self.lanes = [Lane(), Lane()]
        self.passages: Passages[Passage] = Passages()
        for index in range(1, 6):
            number = self.passages.next()
            assert number == index
            lane, one = self.lanes[index // 3 % 2], work(index, tokens=20)
            self.passages.enter(number, Passage(lane, 10 + number, Progress(one)))
            self.passages.stream(number, {4: None, 5: ELSEWHERE}.get(number, BEHIND))

    def seen(self) -> object:
        """Counts first: they are exact before anybody asks for the tokens."""
        works = self.passages.works
        return (
            {number: passage.progress.count for number, passage in works.items()},
            [(lane.sink.tokens, lane.sink.log_probs) for lane in self.lanes],
        )

    def tokens(self) -> dict[int, list[int]]:
        return {number: passage.progress.tokens for number, passage in self.passages.works.items()}


def frame_of(entries: list[tuple[int, int, int]], log_probs: bool) -> Frame:
    frame = Draft()
    for number, offset, count in entries:
        frame.add(
            number,
            offset,
            answer(work(number, tokens=30))[offset : offset + count],
            [float("nan") if n % 2 else -float(offset + n) for n in range(count)] if log_probs else (),
        )
    return Frame.of(frame)


numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 1 + ROWS, -1])
entries = st.lists(st.tuples(numbers, st.integers(0, 6), st.integers(0, 4)), max_size=6)
moves = st.one_of(st.tuples(entries, st.booleans()), st.sampled_from(["look", "renumber", "restart", "leave", "stop"]))


def moved(world: World, move: str) -> None:
    """Something else happens to the first work that is there."""
    first = next(iter(world.passages.works), None)
    if first is None:
        return
    progress = world.passages.works[first].progress
    match move:
        case "look":
            assert progress.tokens == answer(work(first, tokens=30))[: progress.count]
        case "restart":
            progress.restart()
            for lane in world.lanes:
                lane.sink.tokens.pop(10 + first, None)
        case "renumber":
            number = world.passages.renumber(first)
            assert world.passages.works[number].progress is progress
            assert first not in world.passages.works
        case "leave":
            count = progress.count
            world.passages.leave(first)
            assert progress.count == count
        case "stop":
            world.passages.stream(first, None)


@given(st.lists(moves, max_size=12))
@example([([(1, 0, 2), (2, 0, 0)], False)])
@example([([(2, 0, 1), (2, 0, 1)], False)])
@example([([(1, 0, 1), (2, 0, 1)], True), ([(2, 1, 3), (1, 1, 1)], True)])
@example([([(1, 0, 1), (2, 0, 1)], True), "leave", ([(2, 1, 3), (1, 1, 1)], True)])
def test_both_ways_lead_to_the_same(steps: list[tuple[list[tuple[int, int, int]], bool] | str]) -> None:
    quick, general = World(), World()
    for step in steps:
        if isinstance(step, str):
            moved(quick, step)
            moved(general, step)
        else:
            one = frame_of(*step)
            gaps = pass_on(one, quick.passages, BEHIND)
            expected = _pass_on_sorted(one, general.passages, BEHIND)
            assert {p.down_id: str(gap) for p, gap in gaps.items()} == {
                p.down_id: str(gap) for p, gap in expected.items()
            }
        assert quick.seen() == general.seen()
        quick.passages.check_integrity()
    assert quick.tokens() == general.tokens()
    for number, tokens in quick.tokens().items():
        passage = quick.passages.works[number]
        index = passage.down_id - 10
        assert tokens == answer(work(index, tokens=30))[: passage.progress.count]
        assert not tokens or index < 4


def test_the_usual_frame_goes_the_quick_way() -> None:
    world = World()
    assert _pass_on_whole(frame_of([(1, 0, 1), (2, 0, 1)], False), world.passages, BEHIND)
    assert _pass_on_whole(frame_of([(2, 1, 3), (1, 1, 2)], True), world.passages, BEHIND)
    assert world.lanes[0].sink.tokens == {11: [1000, 1001, 1002], 12: [2000, 2001, 2002, 2003]}
    assert world.tokens() == {1: [1000, 1001, 1002], 2: [2000, 2001, 2002, 2003], 3: [], 4: [], 5: []}


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [(6, 0, 1)],
        [(1, 0, 1), (6, 0, 1)],  # an unknown one
        [(1, 0, 1), (1 + ROWS, 0, 1)],  # another one of the same row
        [(1, 0, 1), (3, 0, 1)],  # two lanes
        [(3, 0, 1), (4, 0, 1)],  # one that is not wanted
        [(3, 0, 1), (5, 0, 1)],  # one from elsewhere
        [(1, 0, 1), (2, 1, 1)],  # a gap
        [(1, 0, 1), (1, 1, 1)],  # twice
        [(1, 0, 1), (1, 0, 1)],  # and the same
        [(1, 0, 1), (2, 0, 0)],  # an empty one
        [(1, 0, 1)] * 2 * ROWS,
    ],
)
def test_anything_unusual_does_not_and_leaves_no_trace(entries: list[tuple[int, int, int]]) -> None:
    world = World()
    before = repr(world.seen())
    assert not _pass_on_whole(frame_of(entries, False), world.passages, BEHIND)
    assert repr(world.seen()) == before
    assert not any(world.tokens().values())


def many(passages: Passages[Passage], count: int) -> tuple[Lane, list[int]]:
    lane, numbers = Lane(), []
    for index in range(count):
        numbers.append(passages.next())
        resumed = lane.sink.tokens[index] = [7] * (index % 3)
        passages.enter(numbers[-1], Passage(lane, index, Progress(work(index, resumed=list(resumed)))))
        passages.stream(numbers[-1], BEHIND)
    return lane, numbers


def step(numbers: list[int], offsets: list[int]) -> Frame:
    return Frame.of(Draft(numbers, offsets, [1] * len(numbers), offsets))


def test_the_table_grows_and_forgets_nobody() -> None:
    passages: Passages[Passage] = Passages()
    lane, numbers = many(passages, ROWS // 4)
    began = [passages.count(number) for number in numbers]
    assert pass_on(step(numbers, began), passages, BEHIND) == {}
    passages.stream(numbers[0], ELSEWHERE)
    later = many(passages, 2 * ROWS)[1]
    assert passages.mask + 1 > 4 * ROWS
    assert len({number & passages.mask for number in numbers + later}) == len(numbers + later)
    assert not passages.streams(numbers[0], BEHIND)
    passages.check_integrity()
    assert _pass_on_whole(step(numbers[1:], [at + 1 for at in began[1:]]), passages, BEHIND)
    for number, at in zip(numbers[1:], began[1:], strict=True):
        assert passages.works[number].progress.tokens == [7] * at + [at, at + 1]
        assert lane.sink.tokens[passages.works[number].down_id] == [7] * at + [at, at + 1]


def test_numbers_come_round_without_meeting_one_that_stays() -> None:
    passages: Passages[Passage] = Passages()
    _, (stays,) = many(passages, 1)
    for _ in range(3 * ROWS):
        _, (goes,) = many(passages, 1)
        assert (goes - stays) & passages.mask
        passages.leave(goes)
    assert list(passages.works) == [stays]


def test_what_waits_to_be_handed_over_is_bounded() -> None:
    passages: Passages[Passage] = Passages()
    lane, numbers = many(passages, 2)
    began = [passages.count(number) for number in numbers]
    for at in range(2 * LOG_FRAMES):
        assert _pass_on_whole(step(numbers, [begin + at for begin in began]), passages, BEHIND)
        assert len(passages._log) < LOG_FRAMES
    large = Draft()
    large.add(numbers[0], passages.count(numbers[0]), [1] * (LEAST_TOKENS + 1))
    assert _pass_on_whole(Frame.of(large), passages, BEHIND)
    assert not passages._log
    assert passages.works[numbers[0]].progress.tokens == lane.sink.tokens[0]


def test_the_tokens_of_an_ended_work_are_not_made_up() -> None:
    world = World()
    progress = world.passages.works[1].progress
    pass_on(frame_of([(1, 0, 2)], False), world.passages, BEHIND)
    world.passages.leave(1)
    assert progress.count == 2
    with pytest.raises(ValueError, match="went when it ended"):
        _ = progress.tokens


def test_numbers_need_not_be_what_a_wire_carries() -> None:
    world, lane = World(), Lane()
    number = world.passages.next()
    world.passages.enter(number, Passage(lane, -1, Progress(work(number))))
    world.passages.stream(number, BEHIND)
    pass_on(frame_of([(number, 0, 1)], False), world.passages, BEHIND)
    assert lane.sink.tokens == {-1: [number * 1000]}
