"""Which prefixes are worth having everywhere."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from libs.lane.work import Work
from services.batcher import hot as hot_module
from services.batcher.hot import MOST, MOST_TOKENS, Hot
from tests.unit.lanes import work


def prompt(*hashes: int, block_tokens: int = 4) -> Work:
    """A work whose blocks have these hashes, and tokens that go with them."""
    tokens = [value for value in hashes for _ in range(block_tokens)]
    one = work(block_hashes=list(hashes), block_tokens=block_tokens, salt="s", adapter="x@1")
    return replace(one, prompt=tokens)


def hashes(hot: Hot, most: int = 8) -> list[Sequence[int]]:
    return [prefix.hashes for prefix in hot.hottest(most)]


def test_a_prefix_is_hot_when_it_was_found_twice() -> None:
    hot = Hot()
    hot.found(prompt(1, 2, 3), 2)
    assert hashes(hot) == []
    hot.found(prompt(1, 2, 9), 2)
    (prefix,) = hot.hottest(8)
    assert (prefix.tokens, prefix.hashes) == ((1,) * 4 + (2,) * 4, (1, 2))
    assert (prefix.adapter, prefix.salt, prefix.model) == ("x@1", "s", "m")


def test_what_spares_more_is_hotter() -> None:
    hot = Hot()
    for _ in range(3):
        hot.found(prompt(1), 1)
    for _ in range(2):
        hot.found(prompt(5, 6, 7), 3)
    assert hashes(hot) == [(5, 6, 7), (1,)]
    assert hashes(hot, 1) == [(5, 6, 7)]


def test_what_only_leads_into_a_hotter_one_is_left_out() -> None:
    hot = Hot()
    for _ in range(2):
        hot.found(prompt(1, 2, 3), 3)
        hot.found(prompt(1, 2, 4), 2)
        hot.found(prompt(1, 8), 2)
    assert hashes(hot) == [(1, 2, 3), (1, 8)]


def test_nothing_is_copied_of_a_prefix_that_was_found_once() -> None:
    hot, read = Hot(), []

    class Prompt(list[int]):
        def __getitem__(self, index: object) -> list[int]:  # type: ignore[override]
            read.append(index)
            return list.__getitem__(self, index)  # type: ignore[call-overload, no-any-return]

    for tail in range(100):
        one = prompt(tail, tail + 1)
        hot.found(replace(one, prompt=Prompt(one.prompt)), 2)
    assert not read
    hot.found(replace(one, prompt=Prompt(one.prompt)), 2)
    assert read == [slice(None, 8)]


def test_nothing_found_and_too_much_found_count_for_nothing() -> None:
    hot, long = Hot(), prompt(1, 2, block_tokens=MOST_TOKENS)
    for _ in range(3):
        hot.found(prompt(1), 0)
        hot.found(long, 2)
    assert hashes(hot) == []


def test_it_keeps_the_heaviest() -> None:
    hot = Hot()
    for _ in range(50):
        hot.found(prompt(1, 2), 2)
    for other in range(10 * MOST):
        hot.found(prompt(1000 + other), 1)
    assert hashes(hot) == [(1, 2)]


def test_what_was_hot_yesterday_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_module, "HALVE_AFTER", 10)
    hot = Hot()
    for _ in range(40):
        hot.found(prompt(1), 1)
    for _ in range(20):
        hot.found(prompt(2), 1)
    assert hashes(hot) == [(2,), (1,)]
