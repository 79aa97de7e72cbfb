"""Who leaves an executor so that something more urgent fits."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from libs.lane.work import Tier
from services.batcher.push_out import MOST_VICTIMS, Room, Running, for_growth, for_interactive, for_memory

INTERACTIVE, ASYNC = Tier.INTERACTIVE, Tier.ASYNC


def running(key: int, tier: Tier = ASYNC, *, blocks: int = 2, tokens: int = 10, pushes: int = 0) -> Running:
    """A work that was placed at time `key`."""
    return Running(key, tier, blocks, tokens, pushes, float(key))


def room(*works: Running, slots: int = 0, blocks: int = 0, name: str = "a") -> Room:
    return Room(name, slots, blocks, works)


def first(rooms: Sequence[Room], blocks: int = 1, most: int = 2) -> tuple[str, list[int]] | None:
    """What is best for an interactive work."""
    for name, victims in for_interactive(rooms, {one.executor: blocks for one in rooms}, most):
        return name, [victim.key for victim in victims]
    return None


def test_the_async_work_leaves_that_loses_least() -> None:
    assert first([room(running(1, tokens=50), running(2, tokens=20), running(3, INTERACTIVE, tokens=1))]) == ("a", [2])


def test_the_executor_is_chosen_where_least_is_lost() -> None:
    rooms = [room(running(1, tokens=50)), room(running(2, tokens=20), name="b")]
    assert [name for name, _ in for_interactive(rooms, {"a": 1, "b": 1}, 2)] == ["b", "a"]


def test_interactive_works_stay_and_so_do_those_that_left_too_often() -> None:
    assert first([room(running(1, INTERACTIVE), running(2, pushes=2))]) is None


def test_nobody_leaves_where_slots_and_blocks_are_not_what_is_lacking() -> None:
    assert first([room(running(1), slots=1, blocks=9)]) is None


def test_no_more_leave_than_are_needed() -> None:
    rooms = [room(running(1, blocks=1, tokens=1), running(2, blocks=1, tokens=2), running(3, blocks=8, tokens=80))]
    assert first(rooms, blocks=8) == ("a", [3]), "with it, the small ones may stay"
    assert first(rooms, blocks=9) == ("a", [1, 3])
    assert first(rooms, blocks=11) is None


def test_not_too_many_leave_for_one() -> None:
    many = [running(key, blocks=1) for key in range(MOST_VICTIMS + 1)]
    assert first([room(*many)], blocks=MOST_VICTIMS) is not None
    assert first([room(*many)], blocks=MOST_VICTIMS + 1) is None


def test_for_growth_async_ones_leave_first_then_the_youngest() -> None:
    works = [running(1, INTERACTIVE), running(2), running(3), running(4, INTERACTIVE), running(5, INTERACTIVE)]
    assert for_growth(room(*works), 1, 2, 2) == [3]
    assert for_growth(room(*works), 1, 4, 2) == [3, 2]
    assert for_growth(room(*works), 1, 6, 2) == [3, 2, 5]
    assert for_growth(room(*works, blocks=1), 1, 3, 2) == [3]


def test_nobody_leaves_for_one_that_is_less_urgent_or_younger() -> None:
    works = [running(1, INTERACTIVE), running(2), running(3)]
    assert for_growth(room(*works), 3, 2, 2) == [3], "rather itself"
    assert for_growth(room(*works), 2, 2, 2) == [3]
    assert for_growth(room(*works), 2, 3, 2) == [2], "what the younger one gives is not enough: then it stays"


def test_for_growth_nobody_leaves_too_often() -> None:
    assert for_growth(room(running(1), running(2, pushes=2)), 1, 1, 2) == [1]


def test_for_memory_those_that_left_too_often_leave_last() -> None:
    works = [running(1), running(2, pushes=2), running(3, INTERACTIVE)]
    assert for_memory(room(*works), 2, 2) == [1]
    assert for_memory(room(*works), 4, 2) == [1, 3]
    assert for_memory(room(*works), 6, 2) == [1, 3, 2]
    assert for_memory(room(*works), 7, 2) == [1, 3, 2], "all that there are"


works = st.lists(
    st.builds(
        running, st.integers(), st.sampled_from(Tier), blocks=st.integers(0, 9), tokens=st.integers(0, 99),
        pushes=st.integers(0, 3),
    ),
    unique_by=lambda one: one.key, max_size=8,
)  # fmt: skip


@given(works, st.integers(-2, 1), st.integers(-5, 10), st.integers(1, 20))
def test_who_leaves_for_an_interactive_work_is_enough_and_each_is_needed(
    works: list[Running], slots: int, blocks: int, need: int
) -> None:
    found = first([room(*works, slots=slots, blocks=blocks)], need)
    victims = [one for one in works if found is not None and one.key in found[1]]
    assert all(one.tier is ASYNC and one.pushes < 2 for one in victims)
    if victims:
        assert slots + len(victims) >= 1
        given = blocks + sum(one.blocks for one in victims)
        assert given >= need
        for one in victims:
            assert slots + len(victims) - 1 < 1 or given - one.blocks < need


@given(works, st.data(), st.integers(-5, 10), st.integers(1, 20))
def test_who_leaves_for_growth_is_enough_or_the_growing_one(
    works: list[Running], data: st.DataObject, blocks: int, need: int
) -> None:
    if not works:
        return
    growing = data.draw(st.sampled_from(works))
    victims = [one for one in works if one.key in for_growth(room(*works, blocks=blocks), growing.key, need, 2)]
    if victims != [growing]:
        assert growing not in victims
        assert blocks + sum(one.blocks for one in victims) >= need
        assert all(one.pushes < 2 for one in victims)
        assert all((one.tier, one.started) > (growing.tier, growing.started) for one in victims)
