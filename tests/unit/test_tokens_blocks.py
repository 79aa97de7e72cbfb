import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.tokens.blocks import chain, link, salt

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=70)


def test_the_hashes_are_the_same_on_every_machine_and_in_every_release() -> None:
    assert salt("smollm2", tenant="a") == b"\x07\0\0\0smollm2\0\0\0\0\x01\0\0\0a"
    assert chain(range(9), 4, salt("smollm2")) == [0x40126F064058273F, 0x20C383FCA2090B6D]


@given(tokens, tokens, st.integers(1, 9))
def test_two_prompts_share_the_blocks_of_their_common_prefix_and_no_others(
    one: list[int], two: list[int], block: int
) -> None:
    common = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    first, second = chain(one, block, b"s"), chain(two, block, b"s")
    assert len(first) == len(one) // block
    assert first[: common // block] == second[: common // block]
    assert set(first[common // block :]).isdisjoint(second[common // block :])


def test_model_adapter_and_tenant_keep_prefixes_apart() -> None:
    salts = [salt("m"), salt("m", "a"), salt("m", "", "a"), salt("ma"), salt("n"), salt("", "m")]
    hashes = {chain(range(32), 32, one)[0] for one in salts}
    assert len(hashes) == len(salts)


def test_a_block_in_the_same_place_behind_other_blocks_has_another_name() -> None:
    assert chain([1, 2, 3, 4], 2, b"")[1] != chain([0, 2, 3, 4], 2, b"")[1]


@given(tokens, st.integers(1, 9))
def test_a_link_is_one_step_of_the_chain(tokens: list[int], block: int) -> None:
    hashes = chain(tokens, block, b"s")
    for index in range(1, len(hashes)):
        assert link(hashes[index - 1], tokens[index * block : (index + 1) * block]) == hashes[index]


def test_what_is_no_block_or_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        chain([1], 0, b"")
    with pytest.raises(OverflowError):
        chain([-1], 1, b"")
    with pytest.raises(OverflowError):
        link(1, [2**32])
