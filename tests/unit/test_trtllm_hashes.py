"""The engine's names of blocks, as its published sources make them."""

import pytest

from services.executor.trtllm.hashes import engine_hash


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
