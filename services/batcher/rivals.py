"""Which tenants contend for a pool, and which of them have more than their share of what runs. Pure."""

from collections import Counter

RIVAL_S = 60.0
"""A tenant counts as a rival this long after its last work came."""


class Rivals:
    """The tenants of one pool. Bounded by those that came within RIVAL_S, and by the works that run.

    Every operation is O(1), amortized.
    """

    def __init__(self) -> None:
        self._came: dict[str, tuple[float, float]] = {}
        """When the last work of a tenant came, and its weight; who came last is last."""
        self._whole = 0.0
        """Their weights, added up."""
        self._running: Counter[str] = Counter()
        self._total = 0

    def came(self, tenant: str, weight: float, now: float) -> None:
        """A work of a tenant arrived."""
        _, before = self._came.pop(tenant, (now, 0.0))
        self._came[tenant] = (now, weight)
        self._whole += weight - before

    def placed(self, tenant: str) -> None:
        """A work of a tenant was placed."""
        self._running[tenant] += 1
        self._total += 1

    def left(self, tenant: str) -> None:
        """One that was placed has left its executor."""
        self._running[tenant] -= 1
        self._total -= 1
        if not self._running[tenant]:
            del self._running[tenant]

    def forget(self, now: float) -> None:
        """Forgets who has not come for long."""
        while self._came:
            tenant, (last, weight) = next(iter(self._came.items()))
            if last + RIVAL_S >= now:
                return
            del self._came[tenant]
            self._whole -= weight
        self._whole = 0.0  # what rounding has left goes with the last of them

    def ahead(self, tenant: str) -> bool:
        """Whether others contend, and a tenant has more than its share of what runs."""
        if len(self._came) < 2 or tenant not in self._came:
            return False
        _, weight = self._came[tenant]
        return self._running[tenant] * self._whole > weight * self._total

    def share(self, tenant: str) -> float:
        """A tenant's share of the pool, against all that contend; 1 of one that does not."""
        _, weight = self._came.get(tenant, (0.0, 0.0))
        return weight / self._whole if weight else 1.0

    @property
    def running(self) -> Counter[str]:
        """Works on executors, by tenant."""
        return Counter(self._running)

    def check_integrity(self) -> None:
        """Raises AssertionError when the sums are not those of the parts."""
        assert self._total == self._running.total()
        assert all(count > 0 for count in self._running.values())
        whole = sum(weight for _, weight in self._came.values())
        assert abs(self._whole - whole) <= 1e-6 * (1 + whole)
        came = [last for last, _ in self._came.values()]
        assert came == sorted(came)
