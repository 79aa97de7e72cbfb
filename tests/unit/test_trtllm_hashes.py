"""Names of blocks: the engine's, as its published sources make them, and ours."""

import pytest

from libs.tokens.blocks import chain, salt
from services.executor.trtllm.hashes import engine_hash, link


@pytest.mark.parametrize(
    ("tokens", "parent", "salt_id", "adapter_id", "name"),
    [
        ([1, 2, 3, 4], 0, None, None, 924206229973855),
        (list(range(32)), 0, 123456789, None, 11121607263623733441),
        ([49151] * 8, 0xDEADBEEF12345678, None, 3, 18176678463384453577),
        ([5], 0, 2**64 - 1, 1, 2878097012402455528),
    ],
)
def test_the_engines_names(
    tokens: list[int], parent: int, salt_id: int | None, adapter_id: int | None, name: int
) -> None:
    """Values made with `hash_v1_block_key` of TensorRT-LLM's runtime/kv_cache_hash.py."""
    assert engine_hash(tokens, parent, salt_id, adapter_id) == name


def test_a_link_is_a_step_of_the_chain() -> None:
    tokens = list(range(100, 148))
    hashes = chain(tokens, 16, salt("model", "adapter"))
    assert link(hashes[0], tokens[16:32]) == hashes[1]
    assert link(hashes[1], tokens[32:]) == hashes[2]
