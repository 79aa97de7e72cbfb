"""Names for the blocks that a prompt fills: equal names mean equal keys and values in an engine's cache.

A block's hash chains over its parent's hash and its own tokens; the first block's parent is a hash of the
salt. So one name stands for a whole prefix (the scheme of vLLM's automatic prefix caching). The hash is
blake2b cut to 64 bits, over little-endian bytes: the same in every process and on every machine.
"""

import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

HASH_BYTES = 8
TOKEN_BYTES = 4


@lru_cache(maxsize=1024)
def salt(model: str, adapter: str = "", tenant: str = "") -> bytes:
    """What keeps prefixes apart: the same tokens under another model or adapter are other keys and values.

    The salt of a work (libs.catalogue.salted), which goes in place of `adapter`, has its tenant in it already if that
    one is isolated. Give `tenant` where a tenant's prompts must not be found, not even by timing, and no such salt is.
    """
    # Lengths in front, so that no two triples run together into the same bytes.
    parts = (part.encode() for part in (model, adapter, tenant))
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def chain(tokens: Sequence[int], block_tokens: int, salt: bytes) -> list[int]:
    """Hashes of the full blocks of `tokens`, first block first, each an unsigned 64-bit integer.

    A last block that is not full has no hash. To go on behind a known block, see `link`.

    Raises ValueError when `block_tokens` is not positive, OverflowError for ids outside of 32 bits.
    """
    if block_tokens <= 0:
        raise ValueError(f"a block holds at least one token, not {block_tokens}")
    data = _packed(tokens)
    parent = _root(salt)
    hashes = []
    step = block_tokens * TOKEN_BYTES
    for start in range(0, len(data) - step + 1, step):
        parent = blake2b(parent + data[start : start + step], digest_size=HASH_BYTES).digest()
        hashes.append(int.from_bytes(parent, "little"))
    return hashes


@lru_cache(maxsize=1024)
def _root(salt: bytes) -> bytes:
    """The parent of a prompt's first block."""
    return blake2b(salt, digest_size=HASH_BYTES).digest()


def link(parent: int, tokens: Sequence[int]) -> int:
    """The hash of the full block that holds `tokens`, behind the block with the hash `parent`: one step of `chain`.

    Raises OverflowError for ids outside of 32 bits.
    """
    digest = blake2b(parent.to_bytes(HASH_BYTES, "little") + _packed(tokens), digest_size=HASH_BYTES).digest()
    return int.from_bytes(digest, "little")


def _packed(tokens: Sequence[int]) -> bytes:
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
