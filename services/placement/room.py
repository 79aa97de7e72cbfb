"""Where a missing copy goes when there is room, and whose room it gets when there is none. Pure."""

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum

from services.placement.draft import Draft
from services.placement.fit import barred
from services.placement.values import Copy
from services.placement.want import Rank, Want


class Cost(IntEnum):
    """What it costs to unload a copy, the least first. A model with running works comes last."""

    FAILED = 0
    """It does not answer anyway."""
    SURPLUS = 1
    """Idle, and beyond what its model needs."""
    IDLE = 2
    """Its model has no works, but loses a copy that it should have."""
    BUSY_SURPLUS = 3
    """Its model has works, and other copies for them."""
    BUSY = 4
    """Works run on it or wait for it: they will wait for their turn."""


SPARE = frozenset({Cost.FAILED, Cost.SURPLUS})
"""What any missing copy may have."""
FLOOR = SPARE | {Cost.BUSY_SURPLUS}
"""What a copy may have that the catalogue wants."""
ANY = frozenset(Cost)
"""What a copy may have that works wait for, or that is pinned."""


def candidates(draft: Draft, want: Want) -> list[str]:
    """Executors that could take the copy if they had room."""
    pool = want.spec.pool
    not_now = barred(draft.failures[pool], draft.world.now, draft.rules) if pool in draft.failures else set()
    if not_now is None:
        return []
    on = draft.on
    return [name for name in draft.eligible(want.spec) if pool not in on[name] and name not in not_now]


def choose(draft: Draft, want: Want, names: Sequence[str]) -> str | None:
    """The executor with room that is best: another value of the spread label, room now rather than later, where
    it lies in memory still, then the most free memory."""
    spec, needed, free, leaving = want.spec, want.spec.copy_bytes, draft.free, draft.leaving
    names = [name for name in names if free[name] >= needed]
    if not names:
        return None
    executors, pool, label = draft.world.executors, spec.pool, spec.spread_label
    if label:
        values = [(executors[key[0]].labels or {}).get(label, "") for key in draft.of[spec.name] if key[1] == pool]
        counts = Counter(values)
        fewest = {name: counts[(executors[name].labels or {}).get(label, "")] for name in names}
        least = min(fewest.values())
        names = [name for name in names if fewest[name] == least]
    held = [name for name in names if pool in executors[name].residents]
    now = held or [name for name in names if free[name] - leaving[name] >= needed] or names
    others = draft.of[spec.name]
    if others:  # not beside an older version, if there is a choice
        taken = {key[0] for key in others}
        now = [name for name in now if name not in taken] or now
    most = max(free[name] for name in now)
    return min(name for name in now if free[name] == most)


def victims(
    draft: Draft, want: Want, names: Sequence[str], allowed: frozenset[Cost], *, soon: bool = False
) -> tuple[str, list[Copy]] | None:
    """The executor and the copies on it to unload: of those that would do, the set whose dearest is cheapest.

    Within one cost the model goes whose works have waited least, then the least recently used.

    Args:
        soon: Also copies that may be unloaded only once they have been ready for a while.
    """
    best: tuple[tuple[object, ...], str, list[Copy]] | None = None
    surplus: dict[str, bool] = {}
    for name in names:
        priced = sorted(
            (price, key, copy)
            for key, copy in ((copy.key, copy) for copy in draft.on[name].values())
            if copy.spec.name != want.spec.name
            and (price := _price(draft, want, copy, surplus, soon))
            and price[0] in allowed
        )
        missing = want.spec.copy_bytes - draft.free[name]
        taken = []
        for price, _, copy in priced:
            taken.append((price, copy))
            missing -= copy.spec.copy_bytes
            if missing <= 0:
                break
        if missing > 0:
            continue
        for one in reversed(taken[:-1]):  # the last made it enough; some of those before may not be needed
            if missing + one[1].spec.copy_bytes <= 0:
                missing += one[1].spec.copy_bytes
                taken.remove(one)
        cost = (max(price for price, _ in taken), len(taken), name)
        if best is None or cost < best[0]:
            best = cost, name, [copy for _, copy in taken]
    return best and (best[1], best[2])


def _price(
    draft: Draft, want: Want, copy: Copy, surplus: dict[str, bool], soon: bool
) -> tuple[Cost, float, float, float] | None:
    """What it costs to unload a copy; None when it may not be.

    Args:
        surplus: Whether a model has more ready copies than it needs, as far as that was found out.
    """
    model = copy.spec.name
    load = draft.load(model)
    if draft.world.models[model].pinned:
        return None
    if draft.failed(copy):
        return Cost.FAILED, 0.0, 0.0, 0.0
    resident = draft.world.executors[copy.executor].residents.get(copy.spec.pool)
    if resident is None or resident.state != "ready":
        return None  # it is on its way, because somebody wanted it
    resided_s = draft.world.now - resident.since
    if not soon and resided_s < max(draft.rules.residency_s, resident.since - copy.placed_at):
        return None  # it has to be of some use first, or models that fight for a place do nothing but load
    if model not in surplus:
        ready = sum(map(draft.ready, draft.of[model].values()))
        surplus[model] = ready > draft.wishes[model].need and not draft.old(model)
    if not load.works:
        return Cost.SURPLUS if surplus[model] else Cost.IDLE, 0.0, load.last_request, resident.since
    if surplus[model]:
        return Cost.BUSY_SURPLUS, load.oldest_waiting_s, load.last_request, resident.since
    patience_s = max(draft.rules.residency_s, load.oldest_waiting_s)
    if want.waiting_s <= patience_s and not (want.spec.pinned and want.rank <= Rank.FLOOR):
        return None  # whoever has waited longest gets the place
    return Cost.BUSY, load.oldest_waiting_s, load.last_request, resident.since
