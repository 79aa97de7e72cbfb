"""vLLM's block events under our names."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.kvcache.values import BlockEvent
from libs.tokens.blocks import chain, salt
from services.executor.vllm.events import BlockNames, Cleared, Event, Removed, Stored

STEP = 4
TOKENS = list(range(10, 26))


def named(*events: Event) -> list[BlockEvent]:
    return BlockNames("m", STEP).translate(events)


def hashes(tokens: list[int], salted: str = "") -> list[int]:
    return chain(tokens, STEP, salt("m", salted))


def test_a_prompts_blocks_get_the_names_that_admission_computes() -> None:
    assert named(Stored(["a", "b", "c", "d"], None, TOKENS)) == [BlockEvent("stored", hashes(TOKENS))]


def test_an_answers_blocks_are_chained_behind_it() -> None:
    first, second = named(Stored(["a", "b"], None, TOKENS[:8]), Stored(["c", "d"], "b", TOKENS[8:]))
    assert [*first.hashes, *second.hashes] == hashes(TOKENS)


@pytest.mark.parametrize(
    ("event", "salted"),
    [
        (Stored(["a"], None, TOKENS[:4], keys=("tenant",)), "tenant"),
        (Stored(["a"], None, TOKENS[:4], "lora@1", ("lora@1", "lora@1")), "lora@1"),
        (Stored(["a"], None, TOKENS[:4], "lora@1", ("lora@1", "other")), "other"),
    ],
)
def test_the_salt_is_taken_from_the_event(event: Stored, salted: str) -> None:
    assert named(event) == [BlockEvent("stored", hashes(TOKENS[:4], salted))]


@pytest.mark.parametrize(
    "event",
    [
        Stored(["a"], None, TOKENS[:4], "lora@1", ("lora@1",)),  # would pass for the base's
        Stored(["a"], None, TOKENS[:4], "lora@1", ("other@1", "salt")),
        Stored(["a"], None, TOKENS[:4], keys=(("image", 0),)),
        Stored(["a"], None, TOKENS[:4], keys=("salt", "more")),
        Stored(["a"], "unheard of", TOKENS[:4]),
        Stored(["a"], None, TOKENS[:3]),
        Stored(["a"], None, TOKENS[:4], whole=False),
    ],
)
def test_what_cannot_be_attributed_stays_unnamed_with_all_behind_it(event: Stored) -> None:
    names = BlockNames("m", STEP)
    assert names.translate([event, Stored(["b"], "a", TOKENS[4:8]), Removed(["a", "b"])]) == []
    assert names.findable == 0


def test_a_name_goes_with_the_last_block_of_its_content() -> None:
    store = Stored(["a"], None, TOKENS[:4])
    [name] = hashes(TOKENS[:4])
    assert named(store, store, Removed(["a"])) == [BlockEvent("stored", [name])]
    assert named(store, store, Removed(["a"]), Removed(["a"])) == [
        BlockEvent("stored", [name]),
        BlockEvent("removed", [name]),
    ]


def test_after_a_clearing_nothing_is_known() -> None:
    store = Stored(["a"], None, TOKENS[:4])
    assert [event.kind for event in named(store, Cleared(), Removed(["a"]), store)] == ["stored", "cleared", "stored"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.booleans()), max_size=60))
def test_the_index_holds_exactly_what_is_held(steps: list[tuple[str, int, bool]]) -> None:
    """Prompts of two salts come and their blocks go, in any order; an index of the events keeps up."""
    names, index, held = BlockNames("m", STEP), set[int](), Counter[tuple[str, int]]()
    for salted, count, stored in steps:
        blocks = [(salted, n) for n in range(count)]
        if stored:
            events: list[Event] = [Stored(blocks, None, TOKENS[: count * STEP], keys=(salted,))]
            held.update(blocks)
        else:
            events = [Removed([blocks[-1]])] if held[blocks[-1]] else []
            held.subtract([blocks[-1]] if events else [])
        for event in names.translate(events):
            assert set(event.hashes).isdisjoint(index) == (event.kind == "stored")
            index ^= set(event.hashes)
    assert index == {hashes(TOKENS, salted)[n] for (salted, n), count in held.items() if count}
    assert names.findable == len(index)
