"""Moves copies so that a model can lie that could not lie otherwise. Pure.

Finding the fewest moves is bin packing, so the search is bounded: it looks at the executors that lack least, at a
few copies of each, and at no more than `Rules.moves` of them at once.
"""

from collections.abc import Sequence
from itertools import combinations

from services.placement.draft import Draft
from services.placement.fit import barred
from services.placement.values import Copy
from services.placement.want import Want

EXECUTORS = 32
"""Looked at for one model."""
COPIES = 8
"""Looked at on one executor."""
SEARCHES = 300
"""Searches for a place to move a copy to, for one model."""


def repack(draft: Draft, want: Want, names: Sequence[str]) -> tuple[str, list[tuple[Copy, str]]] | None:
    """The executor, and the copies on it that have to move, each with where to; None when that was not found.

    Moves nothing that is pinned, in the middle of a rollout, or lies for less than `Rules.churn_s` (while works
    wait for the model, that does not count). Idle copies move rather than busy ones, small rather than large.
    """
    needed = want.spec.copy_bytes
    nearest = sorted(names, key=lambda name: (needed - draft.free[name], name))[:EXECUTORS]
    movable = {name: _movable(draft, want, name) for name in nearest}
    search = _Search(draft)
    for count in range(1, draft.rules.moves + 1):
        for name in nearest:
            for copies in combinations(movable[name], count):
                if draft.free[name] + sum(copy.spec.copy_bytes for copy in copies) < needed:
                    continue
                if (moves := search.targets(copies)) is not None:
                    return name, moves
                if search.left <= 0:
                    return None
    return None


def _movable(draft: Draft, want: Want, executor: str) -> list[Copy]:
    def pain(copy: Copy) -> tuple[object, ...]:
        return draft.load(copy.spec.name).works > 0, copy.spec.copy_bytes, copy.key

    copies = [
        copy
        for copy in draft.on[executor].values()
        if copy.spec.name != want.spec.name
        and not copy.spec.pinned
        and not draft.failed(copy)
        and not draft.old(copy.spec.name)
        and (want.waiting_s or draft.world.now - copy.placed_at >= draft.rules.churn_s)
    ]
    return sorted(copies, key=pain)[:COPIES]


class _Search:
    """Looks for places, and counts how often it did."""

    def __init__(self, draft: Draft) -> None:
        self.left = SEARCHES
        self._draft = draft

    def targets(self, copies: Sequence[Copy]) -> list[tuple[Copy, str]] | None:
        """A place for each copy, the largest first, the tightest fit first."""
        draft, taken, found = self._draft, dict[str, int](), list[tuple[Copy, str]]()
        for copy in sorted(copies, key=lambda copy: -copy.spec.copy_bytes):
            self.left -= 1
            pool, needed = copy.spec.pool, copy.spec.copy_bytes
            not_now = barred(draft.failures.get(pool, {}), draft.world.now, draft.rules)
            room = [
                (left, name)
                for name in draft.eligible(copy.spec)
                if (left := draft.free[name] - taken.get(name, 0)) >= needed
                and name != copy.executor
                and pool not in draft.on[name]
                and not_now is not None
                and name not in not_now
            ]
            if not room:
                return None
            _, target = min(room)
            taken[target] = taken.get(target, 0) + needed
            found.append((copy, target))
        return found
