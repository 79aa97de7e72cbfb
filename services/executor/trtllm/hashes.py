"""The engine's names of blocks, to know whose block an event speaks of. Pure.

TensorRT-LLM names a block by mixing its tokens into the name of its parent, the salt into the first block of a
chain, and the adapter's id into every block (BlockKeyHasher in its kvCacheManager; called v1_block_key since
1.3). Events do not carry salt and adapter: a first block's name is the one trace of them.
"""

from collections.abc import Sequence

_WORD = (1 << 64) - 1
_HALF = (1 << 32) - 1
_GOLDEN = 0x9E3779B9


def engine_hash(tokens: Sequence[int], parent: int, salt_id: int | None, adapter_id: int | None) -> int:
    """The engine's 64-bit name of a block; `parent` is 0 for the first of a chain."""
    state = (len(tokens) ^ parent * 0xBF58476D1CE4E5B9) & _WORD
    if parent == 0 and salt_id is not None:
        state = _stir(state, _spread64(salt_id))
    for token in tokens:
        # The engine adds these two as 32-bit numbers.
        state = _stir(state, (_spread32(token) + _GOLDEN & _HALF) - _GOLDEN)
    if adapter_id is not None:
        state = _stir(state, _spread64(adapter_id))
    return state


def _stir(state: int, value: int) -> int:
    """Boost's hash_combine, on 64 bits."""
    return state ^ (value + _GOLDEN + (state << 6) + (state >> 2) & _WORD)


def _spread32(value: int) -> int:
    """An invertible mix of 32 bits."""
    value &= _HALF
    for _ in range(2):
        value = ((value >> 16) ^ value) * 0x45D9F3B & _HALF
    return (value >> 16) ^ value


def _spread64(value: int) -> int:
    """The finalizer of splitmix64 (Steele et al., OOPSLA 2014)."""
    value &= _WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
