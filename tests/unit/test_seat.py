"""What a seat says of its load."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher.seat import LEAST_MARGIN, MARGIN_S, ModelCapacity, Seat


def seat(blocks: int = 10) -> Seat:
    return Seat("a", ModelCapacity(slots=4, blocks=blocks, block_tokens=4))


def test_what_it_foresees_it_waits_for() -> None:
    one = seat()
    assert one.foresee(1000, 1000) == 0.0, "nothing was measured"
    one.prefill_rate = 1000.0
    assert one.foresee(1000, 500) == 0.5
    one.take("", False, 3, 500, 0.5, 100.0)
    one.take("", False, 3, 500, 0.5, 100.0)
    assert one.backlog_s(100.0) == 1.0
    assert one.backlog_s(100.4) == pytest.approx(0.6)
    assert one.backlog_s(102.0) == 0.0, "late, but nobody knows how long it will take"
    one.started(500, 0.5, 501, 102.0)
    assert one.backlog_s(102.0) == 0.5, "set right at each first token"
    one.correct(-250, -0.25)
    assert one.backlog_s(102.0) == 0.25
    one.give_back("", False, 3, 250, 0.25, 0, 102.0)
    assert one.backlog_s(102.0) == 0.0
    assert (one.works, one.prefilling, one.prefill_tokens, one.reserved, one.context_tokens) == (1, 0, 0, 3, 501)


def test_what_is_free() -> None:
    one = seat()
    one.take("x", True, 12, 1, 0.0, 0.0)
    assert (one.free_slots, one.free_blocks, one.patient) == (3, -2, 1)
    assert [one.blocks_for(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_the_margin_goes_by_the_pace() -> None:
    one = seat()
    assert one.margin == LEAST_MARGIN
    one.token_s = MARGIN_S / 100
    assert one.margin == 100
    assert one.filled_by(100, 1000) == 50
    assert one.filled_by(100, 104) == 26, "it never has more"


def test_room_beside_what_is_filled() -> None:
    one = seat(blocks=20)
    assert one.has_room_for(1000), "the policy counts what is reserved; this is about more than that"
    one.filled = 10
    assert one.has_room_for(40 - LEAST_MARGIN)
    assert not one.has_room_for(41 - LEAST_MARGIN)


loads = st.tuples(st.sampled_from(["", "x", "y"]), st.booleans(), st.integers(0, 9), st.integers(1, 900))


@given(st.lists(loads, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_what_was_taken_is_given_back(works: list[tuple[str, bool, int, int]], begun: list[bool]) -> None:
    one = seat()
    one.prefill_rate = 100.0
    for adapter, patient, blocks, compute in works:
        one.take(adapter, patient, blocks, compute, compute / 100, 0.0)
    for (_, _, _, compute), first in zip(works, begun, strict=False):
        if first:
            one.started(compute, compute / 100, compute + 1, 1.0)
    for (adapter, patient, blocks, compute), first in zip(works, begun, strict=False):
        left = (0, 0.0, compute + 1) if first else (compute, compute / 100, 0)
        one.give_back(adapter, patient, blocks, *left, 2.0)
    assert (one.works, one.patient, one.reserved, one.prefilling, one.prefill_tokens, one.context_tokens) == (0,) * 6
    assert one.adapters == Counter()
    assert one.prefill_s == pytest.approx(0.0, abs=1e-9)
    assert one.backlog_s(2.0) == 0.0
