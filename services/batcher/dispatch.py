"""On which executor a work runs. Pure.

Late binding: asked when a slot is free, not on arrival, so that one long request never blocks a queue
behind it. Among executors with a free slot and room for the work's blocks, one on which the work's adapter
runs already is best, then one that has it in memory, then one with room for it (the order of llm-d's LoRA
score); of equals the least loaded. An executor that is much busier than the least busy one loses its
preference: else one popular adapter would have one executor. Last ties are broken at random, because every
fixed rule sends a burst to one place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

UNEVEN = 0.5
"""Share of its slots by which an executor may be busier than the least busy one and still be preferred."""


class Affinity(IntEnum):
    """How well a work's adapter goes with what an executor does; higher is better."""

    TAKEN = 0
    """Others run, as many as there can be: it waits there, or is swapped in."""
    ROOM = 1
    """It has to be loaded."""
    LIES = 2
    """It is in memory."""
    RUNS = 3
    """It runs there, or nothing has to be changed for it."""


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
    affinity: Affinity = Affinity.RUNS


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
    least = min(map(_load, fitting))
    even = [c for c in fitting if _load(c) <= least + UNEVEN]
    liking = max(c.affinity for c in even)
    liked = [c for c in even if c.affinity == liking]
    load = min(map(_load, liked))
    best = [c for c in liked if _load(c) == load]
    chosen = best[pick(len(best))]
    return Choice(
        chosen.executor,
        blocks_needed(tokens, chosen.block_tokens),
        f"{_why(chosen.affinity, len(liked))} of {len(fitting)}: {chosen.running} of {chosen.slots} slots, "
        f"{chosen.reserved} of {chosen.blocks} blocks",
    )


def fits_nowhere(candidates: Sequence[Candidate], tokens: int) -> bool:
    """Whether even an empty executor of the pool could not hold the work."""
    return bool(candidates) and all(blocks_needed(tokens, c.block_tokens) > c.blocks for c in candidates)


def _why(affinity: Affinity, liked: int) -> str:
    why = {
        Affinity.RUNS: "least loaded",
        Affinity.LIES: "has all that it needs in memory, least loaded",
        Affinity.ROOM: "has room for the adapter, least loaded",
        Affinity.TAKEN: "all run other adapters; least loaded",
    }[affinity]
    return why if liked > 1 or affinity is Affinity.RUNS else why.removesuffix(", least loaded")


def _load(candidate: Candidate) -> float:
    return candidate.running / candidate.slots
