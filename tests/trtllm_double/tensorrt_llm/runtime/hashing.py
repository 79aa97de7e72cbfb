"""How the engine names blocks, step by step as the C++ does it, on numbers that wrap."""

from collections.abc import Sequence
from hashlib import blake2b

from tensorrt_llm.flavor import HASH


def get_cache_salt_id(cache_salt: str) -> int:
    """The real one takes blake3; what counts is that salts differ."""
    return int.from_bytes(blake2b(cache_salt.encode(), digest_size=8).digest(), "little")


def block_key(tokens: Sequence[int], parent: int, lora_task_id: int | None, salt_id: int | None) -> int:
    """A 64-bit name."""
    if HASH == "other":
        data = repr((list(tokens), parent, lora_task_id, salt_id))
        return int.from_bytes(blake2b(data.encode(), digest_size=8).digest(), "little")
    seed = u64(len(tokens) ^ u64(parent * 0xBF58476D1CE4E5B9))
    if parent == 0 and salt_id is not None:
        seed = mix64(salt_id, seed)
    for token in tokens:
        a = u32(token)
        a = u32(((a >> 16) ^ a) * 0x45D9F3B)
        a = u32(((a >> 16) ^ a) * 0x45D9F3B)
        a = (a >> 16) ^ a
        seed ^= u64(u32(a + 0x9E3779B9) + u64(seed << 6) + (seed >> 2))
    if lora_task_id is not None:
        seed = mix64(lora_task_id, seed)
    return seed


def mix64(value: int, seed: int) -> int:
    c = u64(value)
    c = u64((c ^ (c >> 30)) * 0xBF58476D1CE4E5B9)
    c = u64((c ^ (c >> 27)) * 0x94D049BB133111EB)
    c = c ^ (c >> 31)
    return u64(seed ^ u64(c + 0x9E3779B9 + u64(seed << 6) + (seed >> 2)))


def u32(value: int) -> int:
    return value & 0xFFFFFFFF


def u64(value: int) -> int:
    return value & 0xFFFFFFFFFFFFFFFF
