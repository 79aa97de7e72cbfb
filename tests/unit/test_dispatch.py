"""On which executor a work runs."""

from hypothesis import given
from hypothesis import strategies as st

from services.batcher.dispatch import Candidate, blocks_needed, choose, fits_nowhere

candidates = st.builds(
    Candidate,
    executor=st.text("abc", min_size=1, max_size=3),
    slots=st.integers(1, 8),
    running=st.integers(0, 8),
    blocks=st.integers(0, 40),
    reserved=st.integers(0, 40),
    block_tokens=st.sampled_from([1, 16, 32]),
)


def candidate(name: str, running: int = 0, reserved: int = 0, slots: int = 4, blocks: int = 10) -> Candidate:
    return Candidate(name, slots, running, blocks, reserved, 16)


def test_blocks_are_whole() -> None:
    assert [blocks_needed(tokens, 16) for tokens in (1, 16, 17, 32)] == [1, 1, 2, 2]


def test_the_least_loaded_wins() -> None:
    choice = choose([candidate("a", 2), candidate("b", 1), candidate("c", 3)], 20, lambda n: 0)
    assert (choice.executor, choice.blocks) == ("b", 2)
    assert "1 of 4 slots" in choice.reason


def test_load_is_a_share_of_the_slots() -> None:
    assert choose([candidate("a", 1, slots=2), candidate("b", 3, slots=8)], 1, lambda n: 0).executor == "b"


def test_ties_are_broken_by_the_random_source() -> None:
    tied = [candidate("a", 3), candidate("b"), candidate("c")]
    asked: list[int] = []

    def last(n: int) -> int:
        asked.append(n)
        return n - 1

    assert choose(tied, 1, last).executor == "c"
    assert asked == [2]


def test_why_none() -> None:
    assert "no executor" in choose([], 1, lambda n: 0).reason
    assert "all slots of 1" in choose([candidate("a", 4)], 1, lambda n: 0).reason
    assert "no executor has room" in choose([candidate("a", reserved=10)], 1, lambda n: 0).reason


def test_too_large_for_all_is_not_too_large_for_now() -> None:
    assert fits_nowhere([candidate("a"), candidate("b")], 161)
    assert not fits_nowhere([candidate("a", 4, 10), candidate("b", 4, 10)], 160)
    assert not fits_nowhere([], 1)


@given(st.lists(candidates, max_size=6), st.integers(1, 700), st.integers(0, 100))
def test_never_more_than_there_is(among: list[Candidate], tokens: int, seed: int) -> None:
    choice = choose(among, tokens, lambda n: seed % n)
    could = [c for c in among if c.running < c.slots and c.reserved + blocks_needed(tokens, c.block_tokens) <= c.blocks]
    assert choice.reason
    assert (choice.executor is None) == (not could)
    if choice.executor is not None:
        best = min(c.running / c.slots for c in could)
        assert any(
            (c.executor, c.running / c.slots, blocks_needed(tokens, c.block_tokens))
            == (choice.executor, best, choice.blocks)
            for c in could
        )
