"""On which executor a work runs. Pure.

Late binding: asked when a slot is free, not on arrival, so that one long request never blocks a queue
behind it. The least loaded executor with a free slot and room for the work's blocks wins; ties are broken at
random, because every fixed rule sends a burst to one place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one executor of the pool."""

    executor: str
    slots: int
    running: int
    """Works on it, those being placed included."""
    blocks: int
    reserved: int
    """Blocks reserved for those works."""
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The executor, or None, and why."""

    executor: str | None
    blocks: int
    """Blocks to reserve there."""
    reason: str


def blocks_needed(tokens: int, block_tokens: int) -> int:
    """Blocks that a prompt and its longest answer, `tokens` together, can come to need."""
    return -(-tokens // block_tokens)


def choose(candidates: Sequence[Candidate], tokens: int, pick: Callable[[int], int]) -> Choice:
    """Chooses an executor for a work of `tokens` prompt and answer tokens.

    Args:
        pick: `pick(n)` gives a random index below n.
    """
    if not candidates:
        return Choice(None, 0, "no executor of the pool is ready")
    free = [c for c in candidates if c.running < c.slots]
    if not free:
        return Choice(None, 0, f"all slots of {len(candidates)} executors are taken")
    fitting = [c for c in free if c.reserved + blocks_needed(tokens, c.block_tokens) <= c.blocks]
    if not fitting:
        return Choice(None, 0, f"no executor has room for the blocks of {tokens} tokens")
    load = min(_load(c) for c in fitting)
    best = [c for c in fitting if _load(c) == load]
    chosen = best[pick(len(best))]
    return Choice(
        chosen.executor,
        blocks_needed(tokens, chosen.block_tokens),
        f"least loaded of {len(fitting)}: {chosen.running} of {chosen.slots} slots, "
        f"{chosen.reserved} of {chosen.blocks} blocks",
    )


def fits_nowhere(candidates: Sequence[Candidate], tokens: int) -> bool:
    """Whether even an empty executor of the pool could not hold the work."""
    return bool(candidates) and all(blocks_needed(tokens, c.block_tokens) > c.blocks for c in candidates)


def _load(candidate: Candidate) -> float:
    return candidate.running / candidate.slots
