"""One class of a queue: a line of works for each tenant, and whose turn it is. Pure."""

from math import inf

from services.batcher.fairness import Counters
from services.batcher.ordered import Item, LazyHeap, Row

LATE_TURN = 8
"""Of the works of a tenant that are dispatched while late ones wait, each so many-th is a late one."""

CAME_BACK = -inf
"""The order of a work that was running and came back."""


class Line:
    """What waits of one tenant.

    First works that came back, in order of arrival: they have waited already, and hold tokens. Then those that can
    still be in time, the earliest due first. Then those that are late, in the same order: what is late stays late,
    and to serve it first would make others late too, until under a lasting overload everything is, and no promise is
    kept at all. A work without a due time counts as due on arrival: nothing is lost when it waits.

    What is late does not starve: each LATE_TURN-th turn is that of the first of them. So a late work runs after at
    most LATE_TURN turns of its tenant for itself and for each that was due before it.
    """

    __slots__ = ("_lines", "_passed", "account", "aside", "number", "row", "tenant", "weight", "works")

    def __init__(self, tenant: str, number: int, lines: "Lines") -> None:
        self.tenant = tenant
        self.number = number
        """Grows with each line."""
        self.weight = 1.0
        self.works = 0
        """All of them, those that are parked too."""
        self.row = Row()
        """Those that may run."""
        self.aside = False
        """It has no turn for the moment."""
        self._passed = 0
        """Turns since the first of those that are late had one."""
        self._lines = lines
        self.account = lines.counters.enter(tenant, self)
        """What the tenant has been served."""

    @property
    def served(self) -> int:
        """The tenant's counter."""
        return self.account.served

    def show(self, item: Item) -> None:
        """A work that may run from now on."""
        first = not self.row
        self.row.add(item)
        self._lines.tokens += item[2]
        if first:
            self.moved()

    def hide(self, item: Item) -> None:
        """One that may not run any more."""
        self.row.remove(item)
        self._lines.tokens -= item[2]
        if not self.row:
            self._lines.heads.discard(self.number)

    def take(self, item: Item) -> None:
        """One that could run leaves, and that was a turn. (Cancels count as turns: that only serves who is late.)"""
        first = self.row.first()
        if item == first:
            self._passed = self._passed if item[0] == CAME_BACK else 0
        elif first is not None and first[0] != CAME_BACK:
            self._passed += 1
        self.hide(item)

    def head(self, now: float) -> int:
        """The key of the work that runs next. Only of a line in which one may run."""
        first = self.row.first()
        assert first is not None
        if CAME_BACK < first[0] <= now and self._passed < LATE_TURN - 1:
            return (self.row.after(now) or first)[1]
        return first[1]

    def tokens_before(self, order: float, key: int, now: float) -> int:
        """Prompt tokens that would run before a new work if it stood here, and no other came.

        What is late counts whole, though it has few turns as long as others are in time: its tokens were promised
        first. If they did not count, as much would be promised again, and come to be late as well.
        """
        before = self.row.tokens_before((order, key))
        if order > now:
            return before
        return before + self.row.tokens - self.row.tokens_before((now, inf))  # what is in time goes before it

    def moved(self) -> None:
        """The tenant's counter has changed, or whether it has turns."""
        if self.row and not self.aside:
            self._lines.heads.set(self.number, self.account.served)
        else:
            self._lines.heads.discard(self.number)

    def leave(self) -> None:
        """A work has gone; the last takes the line with it."""
        self.works -= 1
        if not self.works:
            self._lines.close(self)

    def close(self) -> None:
        """The tenant waits here no more."""
        self._lines.counters.leave(self.account, self)


class Lines:
    """The lines of all tenants in one class: the next turn is that of the smallest counter; among equal ones, of who
    began to wait first."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.tokens = 0
        """Of all works that may run."""
        self.heads: LazyHeap[int] = LazyHeap()
        """Numbers of the lines that have turns, by counter: those in which a work may run, and that are not aside."""
        self.by_tenant: dict[str, Line] = {}
        self._by_number: dict[int, Line] = {}
        self._opened = 0
        self._aside: list[Line] = []

    def enter(self, tenant: str, weight: float) -> Line:
        """The line that a work joins."""
        line = self.by_tenant.get(tenant)
        if line is None:
            self._opened += 1
            line = self.by_tenant[tenant] = self._by_number[self._opened] = Line(tenant, self._opened, self)
        line.weight = weight
        line.works += 1
        return line

    def close(self, line: Line) -> None:
        """Forgets a line that is empty."""
        del self.by_tenant[line.tenant], self._by_number[line.number]
        line.close()

    def first(self) -> Line | None:
        """Whose turn it is; None when no work may run."""
        top = self.heads.top()
        return None if top is None else self._by_number[top[1]]

    def lowest(self) -> float | None:
        """The smallest counter of those that have turns."""
        top = self.heads.top()
        return None if top is None else top[0]

    def set_aside(self, tenant: str) -> None:
        """A tenant has no turns until `take_in`."""
        if (line := self.by_tenant.get(tenant)) is not None:
            line.aside = True
            line.moved()
            self._aside.append(line)

    def take_in(self) -> None:
        """Ends what `set_aside` did."""
        for line in self._aside:
            line.aside = False
            line.moved()
        self._aside.clear()

    @property
    def withholds(self) -> bool:
        """Whether works could run whose tenants were set aside."""
        return bool(self._aside) and any(line.row for line in self._aside)

    def check_integrity(self) -> None:
        """Raises AssertionError when the order of the lines is not that of the counters."""
        lines = list(self.by_tenant.values())
        assert {line.number: line for line in lines} == self._by_number
        turns = {line.number: line.served for line in lines if line.row and not line.aside}
        assert {number: self.heads.get(number) for number in self.heads} == turns
        assert self.tokens == sum(line.row.tokens for line in lines)
        assert all(line.works for line in lines)
        for line in lines:
            line.row.check_integrity()
        self.heads.check_integrity()
