"""How saturated a pool is, for each tier: what degradation ladders go by. Pure.

Three figures, because each sees what the others miss. The wait says how near a promise is to breaking; but the batcher
refuses what would wait too long, so it hardly passes 1, however much is asked for. What is refused says how much more
is asked for than can be done. The blocks say that the room is gone before the wait does.

    wait     the longest of the works that wait, or have left the queue within WAITED_S, over what the work is promised:
             its tier's target, or more for a long prompt (promise.py). It counts from when the pool had an executor:
             one that waits for its model to be loaded is not helped by shorter answers.
    refused  of the works that came lately, the share that found no room, each tenant counting the same: what a tenant
             asks for beyond its share is no reason to give less to the others, who do not notice it. Works count less
             the longer ago they came, on average those of 2.5 s as in a window of 5 s; but a window's share would rise
             when a flood is over, since what was let in at its beginning would be forgotten before what was refused at
             its end. It is no more than the share within LATELY_S, so that it falls as soon as room is found. One more
             work is counted that was let in: a single refusal is half a saturation and not a whole one.
    blocks   reserved, of those of the executors that are up.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import msgspec

from libs.lane.work import Tier
from services.batcher.queue import Entry

WAITED_S = 2.0
SLOT_S = 0.25
"""Waits within such a time are remembered as one, the longest."""
HALF_LIFE_S = 1.75
"""After which a work that came counts half. Its mean age is then 2.5 s."""
CAME_S = 10.0
"""For which it counts at all."""
LATELY_S = 2.0
SLICE_S = 1.0
"""Works that came within such a time are counted together."""
MOST_TENANTS = 1000
"""Tenants that are told apart in a slice; the rest counts as one."""
RISE = 0.05
"""A figure that has grown by so much is news."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """One model's, for one tier; the message is headrace.registry.v1.Saturation."""

    tier: Tier
    waiting: int = 0
    wait: float = 0.0
    blocks: float = 0.0
    refused: float = 0.0

    def risen(self, before: "Saturation") -> bool:
        """Whether it is worse than it was, by so much that somebody ought to know at once. Blocks alone are not: they
        are reserved and released all the time, and break no promise."""
        return self.wait >= before.wait + RISE or self.refused >= before.refused + RISE


class Came(msgspec.Struct):
    """Of one tenant."""

    works: float = 0.0
    refused: float = 0.0

    def add(self, other: "Came", weight: float = 1.0) -> None:
        """As many more."""
        self.works += weight * other.works
        self.refused += weight * other.refused


class Load:
    """What came to one pool, and how long it waited. Every operation is O(1), but `waits` and `came`. Bounded: some
    seconds' slots and slices, and MOST_TENANTS in each slice. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._up_since = -inf
        self._waits: dict[Tier, deque[tuple[int, float]]] = {tier: deque() for tier in Tier}
        """By slot, the newest last."""
        self._came: dict[Tier, deque[tuple[int, dict[str, Came]]]] = {tier: deque() for tier in Tier}
        """By slice, the newest last."""

    def follow(self, up: bool, now: float) -> None:
        """To be told now and then whether an executor of the pool is up."""
        if not up:
            self._up_since = now

    def arrived(self, tenant: str, tier: Tier, refused: bool, now: float) -> None:
        """A work came. `refused`: there was no room for it, though there is when less is asked for."""
        slices, number = self._came[tier], int(now / SLICE_S)
        if not slices or slices[-1][0] != number:
            slices.append((number, {}))
            self._forget(tier, now)
        tenants = slices[-1][1]
        if tenant not in tenants and len(tenants) >= MOST_TENANTS:
            tenant = ""
        tenants.setdefault(tenant, Came()).add(Came(1, refused))

    def left(self, entry: Entry, target_s: float, now: float) -> None:
        """A work left the queue."""
        waits, number, share = self._waits[entry.tier], int(now / SLOT_S), self._share(entry, target_s, now)
        if waits and waits[-1][0] == number:
            share = max(share, waits.pop()[1])
        waits.append((number, share))
        self._forget(entry.tier, now)

    def waits(self, queue: Iterable[Entry], targets: Mapping[Tier, float], now: float) -> dict[Tier, float]:
        """See the module. `queue` are the works that wait, `targets` seconds, by tier."""
        longest = {}
        for tier, waits in self._waits.items():
            self._forget(tier, now)
            longest[tier] = max((share for _, share in waits), default=0.0)
        for entry in queue:
            share = self._share(entry, targets[entry.tier], now)
            if share > longest[entry.tier]:
                longest[entry.tier] = share
        return longest

    def came(self, tier: Tier, now: float) -> list[tuple[float, Mapping[str, Came]]]:
        """What came within CAME_S: by tenant, in slices, each with its age in seconds."""
        self._forget(tier, now)
        return [(max(now - (number + 1) * SLICE_S, 0.0), tenants) for number, tenants in self._came[tier]]

    def _share(self, entry: Entry, target_s: float, now: float) -> float:
        """What has passed of the time that a work may wait. One that came back is promised nothing new."""
        allowed = entry.due - entry.arrived
        allowed = max(allowed, target_s) if allowed < inf else target_s
        if allowed <= 0:  # without a target nothing is promised
            return 0.0
        return max(now - max(entry.arrived, self._up_since), 0.0) / allowed

    def _forget(self, tier: Tier, now: float) -> None:
        waits, slices = self._waits[tier], self._came[tier]
        while waits and waits[0][0] < int((now - WAITED_S) / SLOT_S):
            waits.popleft()
        while slices and slices[0][0] <= int((now - CAME_S) / SLICE_S):
            slices.popleft()


def refused_share(loads: Iterable[Load], tier: Tier, now: float) -> float:
    """Of what came to the pools of a model; see the module."""
    slices = [each for load in loads for each in load.came(tier, now)]
    fading = [(0.5 ** (age / HALF_LIFE_S), tenants) for age, tenants in slices]
    return min(_share(fading), _share([(1.0, tenants) for age, tenants in slices if age < LATELY_S - SLICE_S]))


def _share(slices: Iterable[tuple[float, Mapping[str, Came]]]) -> float:
    """Of what each tenant asked for, what was refused; on average over the tenants. One that asked for less than one
    work lately counts for so much less."""
    total: dict[str, Came] = {}
    for weight, tenants in slices:
        for tenant, came in tenants.items():
            total.setdefault(tenant, Came()).add(came, weight)
    works = sum(came.works for came in total.values())
    weights = sum(min(came.works, 1.0) for came in total.values())
    if not weights:
        return 0.0
    refused = sum(min(came.works, 1.0) * came.refused / came.works for came in total.values())
    return refused / weights * works / (works + 1)
