"""On which executor a work runs."""

from hypothesis import given
from hypothesis import strategies as st

from services.batcher.dispatch import UNEVEN, Affinity, Candidate, blocks_needed, choose, fits_nowhere

candidates = st.builds(
    Candidate,
    executor=st.text("abc", min_size=1, max_size=3),
    slots=st.integers(1, 8),
    running=st.integers(0, 8),
    blocks=st.integers(0, 40),
    reserved=st.integers(0, 40),
    block_tokens=st.sampled_from([1, 16, 32]),
    affinity=st.sampled_from(Affinity),
)


def candidate(
    name: str, running: int = 0, reserved: int = 0, slots: int = 4, blocks: int = 10, affinity: Affinity = Affinity.RUNS
) -> Candidate:
    return Candidate(name, slots, running, blocks, reserved, 16, affinity)


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
        least = min(c.running / c.slots for c in could)
        even = [c for c in could if c.running / c.slots <= least + UNEVEN]
        best = max((c.affinity, -c.running / c.slots) for c in even)
        assert any(
            (c.executor, (c.affinity, -c.running / c.slots), blocks_needed(tokens, c.block_tokens))
            == (choice.executor, best, choice.blocks)
            for c in even
        )


# --- adapters ------------------------------------------------------------------------------------

WORST_FIRST = [Affinity.TAKEN, Affinity.ROOM, Affinity.LIES, Affinity.RUNS]


def test_an_executor_that_runs_the_adapter_is_better_than_one_that_has_it_than_one_with_room() -> None:
    among = [candidate(f"e{n}", affinity=affinity) for n, affinity in enumerate(WORST_FIRST)]
    for count in (4, 3, 2, 1):
        assert choose(among[:count], 1, lambda n: 0).executor == f"e{count - 1}"
    reasons = [choose(among[:count], 1, lambda n: 0).reason for count in (1, 2, 3, 4)]
    words = ["all run other adapters", "has room for the adapter", "has all that it needs in memory", "least loaded"]
    for reason, word in zip(reasons, words, strict=True):
        assert word in reason


def test_of_those_that_are_liked_the_least_loaded_wins() -> None:
    among = [
        candidate("idle", 0, affinity=Affinity.ROOM),
        candidate("busy", 2, affinity=Affinity.LIES),
        candidate("less", 1, affinity=Affinity.LIES),
    ]
    choice = choose(among, 1, lambda n: 0)
    assert choice.executor == "less"
    assert choice.reason.startswith("has all that it needs in memory, least loaded of 3: 1 of 4 slots")


def test_one_that_is_much_busier_is_not_preferred_any_more() -> None:
    idle = candidate("idle", affinity=Affinity.TAKEN)
    within = candidate("runs", int(4 * UNEVEN), affinity=Affinity.RUNS)
    beyond = candidate("runs", int(4 * UNEVEN) + 1, affinity=Affinity.RUNS)
    assert choose([idle, within], 1, lambda n: 0).executor == "runs"
    assert choose([idle, beyond], 1, lambda n: 0).executor == "idle"


def test_one_that_is_liked_and_has_no_place_is_no_choice() -> None:
    full = candidate("full", 4, affinity=Affinity.RUNS)
    large = candidate("large", reserved=10, affinity=Affinity.RUNS)
    assert choose([full, large, candidate("other", affinity=Affinity.TAKEN)], 1, lambda n: 0).executor == "other"
