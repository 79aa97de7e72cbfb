"""Who has to leave an executor so that something more urgent fits. Pure.

The batcher pushes works out, never the engine: a work that is pushed out keeps its tokens, goes back to the queue
and is resumed behind them. Async work makes room for interactive work; where blocks are given by estimate, a work
that outgrows its own takes those of less urgent and younger ones, or leaves itself. Nobody is pushed out more often
than a limit, but where an engine would run out of memory otherwise.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from libs.lane.work import Tier

MOST_VICTIMS = 8
"""Works that leave for an interactive one."""


@dataclass(frozen=True, slots=True)
class Running:
    """A work on an executor."""

    key: int
    tier: Tier
    blocks: int
    """That come free when it leaves."""
    tokens: int
    """What has to be computed again then, unless the cache keeps it: prompt and answer so far."""
    pushes: int
    """How often it was pushed out already."""
    started: float
    """When it was placed, in monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Room:
    """What an executor has, and who is on it."""

    executor: str
    free_slots: int
    """Less than nothing where more works were placed than it has slots."""
    free_blocks: int
    """Those of works that are leaving already among them; less than nothing where too many were given."""
    running: Sequence[Running]


def for_interactive(
    rooms: Iterable[Room], blocks_of: dict[str, int], most_pushes: int
) -> Iterator[tuple[str, list[Running]]]:
    """Async works that could leave so that an interactive one has a slot and blocks, by executor: first where the
    fewest tokens have to be computed again.

    Args:
        blocks_of: Blocks that the work needs, by executor.
    """
    found: list[tuple[int, str, list[Running]]] = []
    for room in rooms:
        slots, blocks = 1 - room.free_slots, blocks_of[room.executor] - room.free_blocks
        able = [one for one in room.running if one.tier is Tier.ASYNC and one.pushes < most_pushes]
        able.sort(key=lambda one: (one.tokens / max(one.blocks, 1) if blocks > 0 else one.tokens, -one.started))
        victims = _enough(able, slots, blocks)
        if victims and len(victims) <= MOST_VICTIMS:
            found.append((sum(victim.tokens for victim in victims), room.executor, victims))
    for _, executor, victims in sorted(found, key=lambda one: one[:2]):
        yield executor, victims


def for_growth(room: Room, key: int, blocks: int, most_pushes: int) -> list[int]:
    """Works that leave an executor so that one of those on it gets `blocks` more. Async ones leave for interactive
    ones, and the younger for the older; who was pushed out too often stays. Where those are not enough, it leaves
    itself: so the most urgent and oldest always goes on, and no two push each other out for ever."""
    ordered = _least_urgent_first(room.running)
    growing = next(place for place, one in enumerate(ordered) if one.key == key)
    able = [one for one in ordered[:growing] if one.pushes < most_pushes]
    victims = _enough(able, 0, blocks - room.free_blocks)
    return [key] if victims is None else [victim.key for victim in victims]


def for_memory(room: Room, blocks: int, most_pushes: int) -> list[int]:
    """Works that leave an executor because its engine is about to lack so many blocks. Those that were pushed out
    too often go last; all go when all are not enough."""
    able = sorted(_least_urgent_first(room.running), key=lambda one: one.pushes >= most_pushes)
    victims = _enough(able, 0, blocks)
    return [victim.key for victim in (able if victims is None else victims)]


def _least_urgent_first(running: Iterable[Running]) -> list[Running]:
    return sorted(running, key=lambda one: (-one.tier, -one.started, -one.key))


def _enough(able: Sequence[Running], slots: int, blocks: int) -> list[Running] | None:
    """The first of them that give so many slots and blocks, without those that could have stayed nevertheless; None
    when all together do not."""
    victims: list[Running] = []
    for one in able:
        if slots <= 0 and blocks <= 0:
            break
        victims.append(one)
        slots, blocks = slots - 1, blocks - one.blocks
    if slots > 0 or blocks > 0:
        return None
    for one in list(reversed(victims)):
        if slots + 1 <= 0 and blocks + one.blocks <= 0:
            victims.remove(one)
            slots, blocks = slots + 1, blocks + one.blocks
    return victims
