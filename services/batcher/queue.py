"""The order in which works of one pool run. Pure.

    class (interactive, async) → tenant (fairness.py) → came back, in time, late, each by due (line.py)

Interactive before async. Async work that has waited for `age_s` joins the interactive class: there its tenant's
counter and its due time decide as for any other. So it runs, under any flood of interactive work, after
  - `age_s`; then, until its tenant's turn comes,
  - for each other tenant that waits, as much service by weight as its own is ahead of that one, and one work; and
  - at most LATE_TURN such turns for each work of its own tenant that was due before, once it is late itself.
Where queues share their counters, the second waits also for what the tenant is served in the others (fairness.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import inf

import msgspec

from libs.lane.work import Tier
from services.batcher.fairness import UNIT, Counters
from services.batcher.line import CAME_BACK, Line, Lines
from services.batcher.ordered import Item, LazyHeap
from services.batcher.parking import Parked, Parking

AGE_S = 30.0
"""After this long in the queue, async work is ordered as if it were interactive."""

SAMPLE = 256
"""Tenants that an estimate looks at; of more, every n-th counts for n."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may wait in one pool's queue, per tier."""

    works: int = 4096
    tokens: int = 4_000_000
    """Prompt tokens."""
    age_s: float = AGE_S
    """See AGE_S; of the async tier."""


class Entry(msgspec.Struct, frozen=True):
    """A work in the queue."""

    key: int
    """Grows with each arrival."""
    tier: Tier
    tokens: int
    """Prompt tokens, and those of its answer that it brings along: what waits to be computed."""
    arrived: float
    """Monotonic seconds."""
    tenant: str = ""
    weight: float = 1.0
    """The tenant's share against those of others; above 0."""
    due: float = inf
    """Monotonic seconds at which its first token should be there; infinite when there is no promise to keep."""


class _Waiting(msgspec.Struct):
    """A work and where it stands."""

    entry: Entry
    item: Item
    line: Line


@dataclass(slots=True)
class _Tier:
    """What waits of one tier, in whichever class."""

    works: int = 0
    tokens: int = 0
    arrivals: LazyHeap[int] = field(default_factory=LazyHeap)


class WaitQueue:
    """The queue of one pool. Bounded by `limits`; what does not fit is refused by `refusal`.

    Every operation is O(log n), amortized, but `check_integrity`, and `tokens_ahead`, which looks at up to SAMPLE
    tenants. Time, in monotonic seconds, does not go back from one call to the next.

    Args:
        counters: What the tenants have been served. The batcher charges them when it dispatches.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters if counters is not None else Counters()
        self._works: dict[int, _Waiting] = {}
        self._tiers = {tier: _Tier() for tier in Tier}
        self._classes = {tier: Lines(self._counters) for tier in Tier}
        self._ageing: LazyHeap[int] = LazyHeap()
        """Async works that have not aged yet, by arrival."""
        self._parking = Parking()

    def refusal(self, tier: Tier, tokens: int, limits: Limits) -> str | None:
        """Why a new work does not fit, or None. Does not modify the queue."""
        waiting, waiting_tokens = self._tiers[tier].works, self._tiers[tier].tokens
        if waiting + 1 > limits.works:
            return f"{waiting} {tier.name.lower()} works wait; the limit is {limits.works}"
        if waiting and waiting_tokens + tokens > limits.tokens:
            return f"{waiting_tokens} prompt tokens wait; with {tokens} more the limit of {limits.tokens} is passed"
        return None

    def push(self, entry: Entry, parked: Parked | None = None) -> None:
        """Adds a new work, parked if need be. Raises ValueError when it is here already."""
        self._add(entry, _order(entry), parked)

    def push_front(self, entry: Entry, parked: Parked | None = None) -> None:
        """Puts a work back that was running, before the new ones of its tenant.

        Never refused: it was let in before. Raises ValueError when it is here already.
        """
        self._add(entry, CAME_BACK, parked)

    def peek(self, now: float, age_s: float = AGE_S) -> Entry | None:
        """The work that runs next; None when each that is here is parked.

        Within a tenant, those that can still be in time go before those that are late: see `Line`, also for why.
        """
        if self._ageing:
            self._age(now - age_s)
        for lines in self._classes.values():
            if (line := lines.first()) is not None:
                return self._works[line.head(now)].entry
            if lines.withholds:
                return None
        return None

    def set_aside(self, tenant: str) -> None:
        """Gives other tenants of its class the turns of one, until `take_in`. What is left to them is not for the next
        class: async work there would be pushed out as soon as anybody interactive finds no place."""
        for lines in self._classes.values():
            lines.set_aside(tenant)

    def take_in(self) -> None:
        """Ends what `set_aside` did."""
        for lines in self._classes.values():
            lines.take_in()

    def remove(self, key: int) -> Entry | None:
        """Takes a work out, wherever it stands; None if it is not here."""
        waiting = self._works.pop(key, None)
        if waiting is None:
            return None
        entry, line = waiting.entry, waiting.line
        tier = self._tiers[entry.tier]
        tier.works -= 1
        tier.tokens -= entry.tokens
        tier.arrivals.discard(key)
        self._ageing.discard(key)
        if not self._parking.discard(key):
            line.take(waiting.item)
        line.leave()
        return entry

    def park(self, key: int, until: float, on: str, tokens: int = 0) -> None:
        """Lets others pass a work until a time, or until what it waits for is there: an executor that remembers its
        prefix, or another work that computes it. It still counts as waiting, and ages.

        Parked again, only the last time counts. Raises KeyError when it is not here.

        Args:
            tokens: What it will have to compute there, for `awaited`.
        """
        waiting = self._works.get(key)
        if waiting is None:
            raise KeyError(f"work {key} is not in the queue")
        if key not in self._parking:
            waiting.line.hide(waiting.item)
        self._parking.add(key, until, on, tokens)

    def waiting_for(self, on: str) -> list[int]:
        """The works that are parked for something, in order of arrival."""
        return self._parking.waiting_for(on)

    def waits_for(self, on: str) -> bool:
        """Whether works are parked for something."""
        return self._parking.waits_for(on)

    def awaited(self, on: str) -> int:
        """Tokens that the works that are parked for something will have to compute there."""
        return self._parking.tokens_for(on)

    def unpark(self, on: str) -> int:
        """Puts all that wait for something back into their places; how many that were."""
        keys = self._parking.waiting_for(on)
        for key in keys:
            self._unpark(key)
        return len(keys)

    def unpark_due(self, now: float) -> int:
        """Puts those back whose time has come; how many that were."""
        count = 0
        while (key := self._parking.next_due(now)) is not None:
            self._unpark(key)
            count += 1
        return count

    def waiting(self, tier: Tier) -> int:
        """Works of a tier, parked ones included."""
        return self._tiers[tier].works

    def waiting_tokens(self, tier: Tier) -> int:
        """Prompt tokens of a tier, those of parked works included."""
        return self._tiers[tier].tokens

    def parked(self) -> int:
        """Works of both tiers that are parked."""
        return len(self._parking)

    def oldest(self, tier: Tier) -> float | None:
        """When the work of a tier that has waited longest arrived, in monotonic seconds."""
        top = self._tiers[tier].arrivals.top()
        return None if top is None else top[0]

    def tokens_ahead(self, entry: Entry, *, coming: bool = False) -> int:
        """Prompt tokens that would run before a work that comes now, at its time of arrival; an estimate.

        Of the classes before its own, everything. Of its own tenant, what is in front of it, or late. Of each other
        tenant, what fairness lets pass until that one's counter is where this one's will be, and one work; at the
        cost that a prompt token lately had. It leaves out what is parked (it waits for a prefix, so little of it is
        computed), what comes later, and what ages meanwhile: so it is rather too low. Of more than SAMPLE tenants
        it looks at a sample.

        Args:
            coming: Whether the other tenants that wait count as if they went on sending: what fairness lets pass of
                each is then not bounded by what waits of it now. Under a lasting overload that is how it is.
        """
        ahead = sum([lines.tokens for tier, lines in self._classes.items() if tier < entry.tier])
        lines, turns = self._classes[entry.tier].by_tenant, 0.0
        if (own := lines.get(entry.tenant)) is not None:
            before = own.tokens_before(_order(entry), entry.key, entry.arrived)
            ahead += before
            turns = before / entry.weight
            if len(lines) == 1:
                return ahead
        served = self._counters.served(entry.tenant)
        step = -(-len(lines) // SAMPLE) or 1
        passing, cost = 0.0, self._counters.cost
        for line in islice(lines.values(), 0, None, step):
            lag = (served - line.served / UNIT) / cost + turns
            if lag >= 0 and line is not own:
                tokens = line.row.tokens
                fair = lag * line.weight + tokens / line.works
                passing += fair if coming else min(tokens, fair)
        return ahead + round(passing * step)

    def own_ahead(self, entry: Entry) -> int:
        """Of these tokens, those of its own tenant and class."""
        own = self._classes[entry.tier].by_tenant.get(entry.tenant)
        return own.tokens_before(_order(entry), entry.key, entry.arrived) if own is not None else 0

    @property
    def runnable(self) -> bool:
        """Whether there is a work that may run: one that is not parked, and whose tenant has turns."""
        return any(lines.heads for lines in self._classes.values())

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[Entry]:
        """All works, interactive ones first, each tier in the order in which they came in."""
        for tier in Tier:
            for waiting in self._works.values():
                if waiting.entry.tier is tier:
                    yield waiting.entry

    def check_integrity(self) -> None:
        """Raises AssertionError when counters and contents disagree."""
        everything = list(self._works.values())
        assert all(waiting.entry.key == key for key, waiting in self._works.items())
        for tier, state in self._tiers.items():
            entries = [entry for entry in self if entry.tier is tier]
            assert state.works == len(entries)
            assert state.tokens == sum(entry.tokens for entry in entries)
            assert set(state.arrivals) == {entry.key for entry in entries}
            state.arrivals.check_integrity()
            self._classes[tier].check_integrity()
        for line in {id(waiting.line): waiting.line for waiting in everything}.values():
            here = [waiting for waiting in everything if waiting.line is line]
            assert line.works == len(here)
            assert all(waiting.entry.tenant == line.tenant for waiting in here)
            shown = [waiting.item for waiting in here if waiting.entry.key not in self._parking]
            assert sorted(shown) == list(line.row)
        lines = [line for one in self._classes.values() for line in one.by_tenant.values()]
        assert sum(line.works for line in lines) == len(everything) == len(self)
        young = set(map(id, self._classes[Tier.ASYNC].by_tenant.values()))
        assert set(self._ageing) == {waiting.entry.key for waiting in everything if id(waiting.line) in young}
        assert set(self._parking) <= set(self._works)
        self._parking.check_integrity()
        self._counters.check_integrity()

    def _add(self, entry: Entry, order: float, parked: Parked | None) -> None:
        if entry.key in self._works:
            raise ValueError(f"work {entry.key} is in the queue already")
        item = (order, entry.key, entry.tokens)
        line = self._classes[entry.tier].enter(entry.tenant, entry.weight)
        if parked is None:
            line.show(item)
        else:
            self._parking.add(entry.key, *parked)
        self._works[entry.key] = _Waiting(entry, item, line)
        tier = self._tiers[entry.tier]
        tier.works += 1
        tier.tokens += entry.tokens
        tier.arrivals.set(entry.key, entry.arrived)
        if entry.tier is Tier.ASYNC:
            self._ageing.set(entry.key, entry.arrived)

    def _age(self, arrived: float) -> None:
        """Moves async works that arrived by then into the interactive class."""
        into = self._classes[Tier.INTERACTIVE]
        while (top := self._ageing.top()) is not None and top[0] <= arrived:
            self._ageing.discard(top[1])
            waiting = self._works[top[1]]
            before, tenant = waiting.line, waiting.entry.tenant
            if tenant not in into.by_tenant and (lowest := into.lowest()) is not None:
                self._counters.join(before.account, lowest)
            # First in, then out: a tenant that waits all the time is not lifted by more.
            waiting.line = into.enter(tenant, waiting.entry.weight)
            if top[1] not in self._parking:
                before.hide(waiting.item)
                waiting.line.show(waiting.item)
            before.leave()

    def _unpark(self, key: int) -> None:
        self._parking.discard(key)
        waiting = self._works[key]
        waiting.line.show(waiting.item)


def _order(entry: Entry) -> float:
    return entry.arrived if entry.due == inf else entry.due
