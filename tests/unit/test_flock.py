"""Who computes a prefix that several works share, and who waits for it."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from services.batcher.flock import Flock, shared


def chain(*tokens: int) -> list[int]:
    """Hashes that depend on everything in front of them."""
    hashes = [hash(tokens[: end + 1]) for end in range(len(tokens))]
    return [value or 1 for value in hashes]


def test_who_has_the_same_first_missing_block_follows() -> None:
    flock = Flock()
    flock.lead(1, "a", chain(1, 2, 3), 0)
    leader, common = flock.leader(chain(1, 2, 9), 0) or (None, 0)
    assert leader is not None
    assert (leader.key, leader.executor, common) == (1, "a", 2)
    assert flock.leader(chain(5, 2, 3), 0) is None, "another prefix"
    assert flock.leader(chain(1, 2, 9), 2) is None, "what they share is remembered already"
    assert flock.leader([], 0) is None
    assert flock.leader(chain(1, 2), 2) is None, "it misses nothing"


def test_the_first_leader_goes_on_leading() -> None:
    flock = Flock()
    flock.lead(1, "a", chain(1, 2), 0)
    flock.lead(2, "b", chain(1, 3), 0)
    leader, _ = flock.leader(chain(1, 4), 0) or (None, 0)
    assert leader is not None
    assert leader.key == 1
    assert flock.ended(2) == set()
    flock.follow(1, 7)
    flock.follow(2, 8)
    assert flock.ended(1) == {7}, "2 never led"
    assert flock.leaders == set()
    flock.check_integrity()


def test_whose_prompt_is_all_remembered_leads_nobody() -> None:
    flock = Flock()
    flock.lead(1, "a", chain(1, 2), 2)
    flock.lead(2, "a", (), 0)
    assert flock.leaders == set()


def test_a_leader_that_finds_more_than_was_known_leads_from_there_on() -> None:
    flock = Flock()
    flock.lead(1, "a", chain(1, 2, 3), 0)
    flock.follow(1, 5)
    assert flock.correct(1, 0) == set(), "as it was thought"
    assert flock.correct(1, 2) == {5}, "two blocks are there already"
    assert flock.leader(chain(1, 2, 3), 0) is None
    leader, common = flock.leader(chain(1, 2, 3, 4), 2) or (None, 0)
    assert leader is not None
    assert (leader.key, common) == (1, 3)
    assert flock.correct(1, 3) == set()
    assert flock.leaders == set(), "it has nothing left to compute"
    assert flock.correct(1, 0) == set()
    flock.check_integrity()


def test_as_chained_hashes_two_prompts_share_what_they_begin_with() -> None:
    assert shared(chain(1, 2, 3), chain(1, 2, 4, 5)) == 2
    assert shared((), chain(1)) == 0


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_shared_is_the_length_of_the_common_beginning(one: list[int], other: list[int]) -> None:
    expected = next((i for i in count() if one[i : i + 1] != other[i : i + 1] or i >= len(one)), 0)
    assert shared(chain(*one), chain(*other)) == expected


steps = st.tuples(st.sampled_from(["lead", "follow", "correct", "ended"]), st.integers(0, 4), st.integers(0, 4))


@given(st.lists(steps))
def test_nothing_is_kept_of_who_has_ended(steps: list[tuple[str, int, int]]) -> None:
    flock, chains = Flock(), [chain(1, 2), chain(1, 2, 3), chain(4), chain(1, 5), chain(4, 6, 7)]
    for what, key, other in steps:
        if what == "lead":
            flock.ended(key)  # a work leads once for each time it is placed
            flock.lead(key, "a", chains[key], min(other, 1))
        elif what == "follow":
            flock.follow(key, other)
        elif what == "correct":
            flock.correct(key, min(other, 2))
        else:
            flock.ended(key)
            assert key not in flock.leaders
        flock.check_integrity()
    for key in range(5):
        flock.ended(key)
    assert flock.leaders == set()
    flock.check_integrity()
