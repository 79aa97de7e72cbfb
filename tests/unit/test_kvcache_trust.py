"""Trust: shares of what was promised, who is told of, when a snapshot is asked for, and what stays behind."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.kvcache.values import PrefixMatch
from services.kvcache.trust import COMPARISONS, PAUSE_S, Drift, Told, Trust

E, F = PrefixMatch("e", 10), PrefixMatch("f", 10)


def compare(
    trust: Trust, found: int | None, times: int = 1, match: PrefixMatch = E, asked: int = 100, now: float = 0.0
) -> list[Drift]:
    """Promises and finds, again and again; what that changed."""
    drifts = []
    for _ in range(times):
        trust.promise("b", 1, "p", match, asked)
        drifts.append(trust.found("b", 1, found, now))
    return [drift for drift in drifts if drift is not None]


def tell(trust: Trust, *matches: PrefixMatch, pool: str = "p") -> list[PrefixMatch]:
    return list(trust.tell(pool, matches))


def distrusted() -> Trust:
    trust = Trust()
    compare(trust, 0, COMPARISONS)
    return trust


def test_what_is_found_as_promised_changes_nothing() -> None:
    trust = Trust()
    assert compare(trust, 10, 100) == []
    assert (trust.told("e", "p"), trust.accuracy("e", "p")) == (Told.ALL, 1.0)
    assert tell(trust, E, F) == [E, F]


def test_broken_promises_end_trust_but_not_before_enough_were_compared() -> None:
    trust = Trust()
    assert compare(trust, 2, COMPARISONS - 1) == []
    assert trust.told("e", "p") is Told.ALL
    (drift,) = compare(trust, 2)
    assert (drift.executor, drift.pool, drift.told, drift.before) == ("e", "p", Told.NOTHING, Told.ALL)
    assert drift.accuracy == pytest.approx(0.2)
    assert drift.snapshot_wanted
    assert tell(trust, E, F) == [F]
    assert tell(trust, E, pool="q") == [E]
    assert trust.told("f", "p") is Told.ALL


def test_now_and_then_a_miss_is_no_drift() -> None:
    trust = Trust()
    for _ in range(20):
        assert compare(trust, 10, 4) == []
        assert compare(trust, 0, 1) == []
    assert 0.7 < trust.accuracy("e", "p") < 0.9


def test_one_that_only_gets_a_little_better_is_not_believed_yet() -> None:
    trust = distrusted()
    assert compare(trust, 8, 200) == []
    assert trust.accuracy("e", "p") == pytest.approx(0.8, abs=0.01)
    assert trust.told("e", "p") is Told.NOTHING
    (drift,) = compare(trust, 10, 30)
    assert (drift.told, drift.before) == (Told.ALL, Told.NOTHING)
    assert tell(trust, E) == [E]
    assert not trust._doubted


def test_after_a_snapshot_it_is_judged_anew_and_by_new_promises_alone() -> None:
    trust = distrusted()
    trust.promise("b", 7, "p", E, 100)
    trust.renewed("e", "p")
    assert trust.found("b", 7, 0, 0.0) is None
    assert trust.accuracy("e", "p") == 1.0
    assert compare(trust, 10, COMPARISONS - 1) == []
    assert tell(trust, E) == []
    assert [drift.told for drift in compare(trust, 10)] == [Told.ALL]


def test_where_only_lower_tiers_are_wrong_only_they_are_left_out() -> None:
    trust, tiered = Trust(), PrefixMatch("e", 10, host_blocks=5, disk_blocks=1)
    (drift,) = compare(trust, 4, COMPARISONS, tiered)
    assert (drift.told, drift.snapshot_wanted) == (Told.DEVICE, True)
    assert trust.accuracy("e", "p") == 1.0
    assert tell(trust, tiered, PrefixMatch("f", 5)) == [PrefixMatch("e", 4), PrefixMatch("f", 5)]
    assert tell(trust, PrefixMatch("e", 6, host_blocks=6)) == []
    (drift,) = compare(trust, 0, COMPARISONS, tiered)
    assert drift.told is Told.NOTHING


def test_the_last_block_of_a_prompt_may_be_computed_again() -> None:
    trust = Trust()
    assert compare(trust, 9, 50, asked=10) == []
    assert trust.accuracy("e", "p") == 1.0
    assert compare(trust, 0, 50, PrefixMatch("e", 1), asked=1) == []
    assert trust.accuracy("e", "p") == 1.0


def test_far_more_than_promised_asks_for_a_snapshot_and_leaves_nothing_out() -> None:
    trust = Trust()
    (drift,) = compare(trust, 40, COMPARISONS)
    assert (drift.told, drift.before, drift.snapshot_wanted) == (Told.ALL, Told.ALL, True)
    assert (trust._doubted, trust.accuracy("e", "p")) == ({}, 1.0)
    trust.renewed("e", "p")
    assert compare(trust, 11, 50, now=1e6) == []


def test_a_cache_that_is_said_to_be_empty_and_is_not_is_noticed() -> None:
    assert compare(Trust(), 40, 100, PrefixMatch("e", 0))
    assert compare(Trust(), 0, 100, PrefixMatch("e", 0)) == []


def test_snapshots_are_asked_for_less_and_less_often() -> None:
    trust, asked = Trust(), []
    for second in range(10_000):
        if compare(trust, 0, now=float(second)):
            asked.append(second)
            trust.renewed("e", "p")
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses[:3] == [PAUSE_S[0], 2 * PAUSE_S[0], 4 * PAUSE_S[0]]
    assert set(pauses[6:]) == {PAUSE_S[1]}


def test_who_does_not_say_what_it_found_is_not_judged() -> None:
    trust = Trust()
    assert compare(trust, None, 100) == []
    assert trust.found("b", 99, 0, 0.0) is None
    assert trust.promised("b") == 0


def test_promises_go_with_reservations_and_accounts_with_caches() -> None:
    trust = distrusted()
    for number in range(5):
        trust.promise("b", number, "p", E, 100)
    trust.batcher_holds("b", [1, 2, 77])
    assert trust.promised("b") == 2
    trust.batcher_holds("b", ())
    assert trust.promised("b") == 0
    trust.promise("b", 1, "p", E, 100)
    trust.forget("e", "p")
    assert trust.found("b", 1, 0, 0.0) is None
    assert (trust._doubted, trust.told("e", "p"), trust._accounts, trust._promises) == ({}, Told.ALL, {}, {})


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10), st.integers(0, 60)), max_size=80))
def test_whatever_comes_the_figures_stay_in_their_bounds(rounds: Iterable[tuple[int, int, int, int]]) -> None:
    trust = Trust()
    for device, host, disk, found in rounds:
        compare(trust, found, match=PrefixMatch("e", device + host + disk, host, disk), asked=70)
        assert 0 <= trust.accuracy("e", "p") <= 1
        assert bool(trust._doubted) == (trust.told("e", "p") is not Told.ALL)
        for match in tell(trust, PrefixMatch("e", device + host + disk, host, disk)):
            assert match.blocks == (device + host + disk if trust.told("e", "p") is Told.ALL else device)
