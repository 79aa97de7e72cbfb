"""What was said of prompts that begin alike is known of the next one, for a while."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from libs.kvcache.values import PrefixMatch
from services.batcher.approximate_index import MOST, STALE_S, ApproximateIndex
from services.batcher.policies.policy import Match

TOKENS = 16


def knows(**blocks: int) -> list[PrefixMatch]:
    """An answer: these executors remember so many blocks."""
    return [PrefixMatch(name, count) for name, count in blocks.items() if count]


def expected(index: ApproximateIndex, hashes: Sequence[int], now: float = 0.0) -> dict[str, int]:
    """In blocks."""
    return {name: match.tokens // TOKENS for name, match in index.matches(hashes, TOKENS, now).items()}


def test_what_begins_alike_is_remembered_alike() -> None:
    index = ApproximateIndex()
    assert expected(index, (1, 2, 3)) == {}
    index.heard((1, 2, 3), knows(a=2, b=1), 0.0)
    assert expected(index, (1, 2, 3)) == expected(index, (1, 2, 9, 8)) == {"a": 2, "b": 1}
    assert expected(index, (1, 7)) == {"a": 1, "b": 1}, "who has two blocks has the first"
    assert expected(index, (1,)) == {"a": 1, "b": 1}
    assert expected(index, (7, 8, 9)) == expected(index, ()) == {}


def test_the_last_word_counts() -> None:
    index = ApproximateIndex()
    index.heard((1, 2, 3), knows(a=3, b=3), 0.0)
    index.heard((1, 2, 4), knows(a=2), 0.0)
    assert expected(index, (1, 2, 3)) == {"a": 3, "b": 3}, "nothing was said of its third block"
    assert expected(index, (1, 2, 4)) == {"a": 2}
    index.heard((1, 2, 3), knows(a=2), 0.0)
    assert expected(index, (1, 2, 3)) == {"a": 2}
    index.heard((1, 2, 5), knows(), 0.0)
    assert expected(index, (1, 2, 3)) == {}
    index.check_integrity()


def test_what_was_heard_long_ago_is_not_known() -> None:
    index = ApproximateIndex()
    index.heard((1, 2), knows(a=2), 10.0)
    index.heard((1,), knows(a=1), 10.5)
    assert expected(index, (1, 2), 10.0 + STALE_S) == {"a": 2}
    assert expected(index, (1, 2), 10.4 + STALE_S) == {"a": 1}
    assert expected(index, (1, 2), 10.6 + STALE_S) == {}


def test_the_last_blocks_are_those_in_worse_tiers() -> None:
    index = ApproximateIndex()
    index.heard((1, 2, 3, 4, 5, 6), [PrefixMatch("a", 6, 2, 1), PrefixMatch("b", 2), PrefixMatch("c", 4)], 0.0)
    matches = index.matches((1, 2, 3, 4, 9), TOKENS, 0.0)
    assert matches == {"a": Match(48, 16, 0), "b": Match(32), "c": Match(64)}
    assert index.matches((1, 2, 3, 4, 5, 6), TOKENS, 0.0)["a"] == Match(48, 32, 16)


def test_it_keeps_those_that_were_heard_of_last() -> None:
    index = ApproximateIndex()
    for prompt in range(MOST):
        index.heard((prompt, -1), knows(a=1), 0.0)
    index.heard((0, -2), knows(a=1), 0.0)
    index.heard((MOST,), knows(a=1), 0.0)
    index.check_integrity()
    assert [prompt for prompt in range(MOST + 1) if not expected(index, (prompt,))] == [1]


blocks = st.integers(0, 4)


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), blocks, blocks), max_size=40))
def test_the_last_prompt_is_known_as_it_was_said(said: list[tuple[list[int], int, int]]) -> None:
    index = ApproximateIndex()
    for prompt, of_a, of_b in said:
        hashes = [hash((*prompt[: end + 1],)) for end in range(len(prompt))]
        answer = knows(a=min(of_a, len(hashes)), b=min(of_b, len(hashes)))
        index.heard(hashes, answer, 0.0)
        assert expected(index, hashes) == {match.executor: match.blocks for match in answer}
        index.check_integrity()
