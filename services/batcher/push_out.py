"""Who has to leave an executor so that something more urgent fits. Pure.

The batcher pushes works out, never the engine: a work that is pushed out keeps its tokens, goes back to the queue
and is resumed behind them. Async work makes room for interactive work; where blocks are given by estimate, the
youngest makes room for those that outgrow theirs. Nobody is pushed out more often than a limit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from libs.lane.work import Tier

MOST_VICTIMS = 8
"""Works that leave for one."""


@dataclass(frozen=True, slots=True)
class Running:
    """A work on an executor."""

    key: int
    tier: Tier
    blocks: int
    """Reserved for it."""
    tokens: int
    """Prompt and answer so far: what has to be computed again, unless the cache keeps it."""
    pushes: int
    """How often it was pushed out already."""
    started: float
    """When it was placed, in monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Room:
    """What an executor has, and who is on it."""

    executor: str
    free_slots: int
    free_blocks: int
    running: Sequence[Running]


def for_interactive(rooms: Iterable[Room], blocks_of: dict[str, int], most_pushes: int) -> tuple[str, list[int]] | None:
    """Async works that leave, so that an interactive one has a slot and blocks; None when that cannot be.

    Chooses the executor where the fewest tokens have to be computed again.

    Args:
        blocks_of: Blocks that the work needs, by executor.
    """
    best: tuple[int, str, list[int]] | None = None
    for room in rooms:
        able = [one for one in room.running if one.tier is Tier.ASYNC and one.pushes < most_pushes]
        victims = _enough(able, 1 - room.free_slots, blocks_of[room.executor] - room.free_blocks)
        if victims is None:
            continue
        lost = sum(victim.tokens for victim in victims)
        if best is None or lost < best[0]:
            best = (lost, room.executor, [victim.key for victim in victims])
    return None if best is None else (best[1], best[2])


def for_growth(room: Room, blocks: int, most_pushes: int) -> list[int] | None:
    """Works that leave an executor so that `blocks` come free on it: async ones first, then the youngest. Those
    that were pushed out too often come last and not at all while others can go; None when even all others are
    not enough."""
    ordered = sorted(room.running, key=lambda one: (one.pushes >= most_pushes, -one.tier, -one.started))
    lacking, victims = blocks - room.free_blocks, []
    for one in ordered:
        if lacking <= 0:
            break
        victims.append(one.key)
        lacking -= one.blocks
    return victims if lacking <= 0 else None


def _enough(able: Sequence[Running], slots: int, blocks: int) -> list[Running] | None:
    """The cheapest of them that give so many slots and blocks."""
    victims: list[Running] = []
    for one in sorted(
        able, key=lambda one: (one.tokens / max(one.blocks, 1) if blocks > 0 else one.tokens, -one.started)
    ):
        if slots <= 0 and blocks <= 0:
            break
        victims.append(one)
        slots, blocks = slots - 1, blocks - one.blocks
    return victims if slots <= 0 and blocks <= 0 and 0 < len(victims) <= MOST_VICTIMS else None
