"""What one tenant asks of one process, and what this process may let it have. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf
from zlib import crc32

from libs.errors import Violation
from services.admission.limits.bucket import Bucket, Rate
from services.admission.limits.shares import share, slots
from services.admission.limits.slots import Slots
from services.admission.policy import Tenant

BURST_S = 1.0
"""What may come at once, in seconds of a limit's rate."""
LEARNING = 0.1
"""The weight of the newest request in averages."""
NOTHING = 1e-3
"""Units per second that are as good as none."""
HEARD_S = 0.5
"""Within which the others have heard of a demand."""
SHORTEST_S, LONGEST_S = 0.05, 60.0
"""Bounds of what is told to wait for an answer to end, where only experience can say."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tenant asks of one process; the message is headrace.registry.v1.TenantSpending."""

    requests_per_s: float = 0.0
    """That came lately, refused ones included."""
    tokens_per_s: float = 0.0
    """That these asked for."""
    running: int = 0
    """Requests in flight, where these are limited."""

    @property
    def slots(self) -> float:
        """Requests in flight that it could do with: as many as there are, and those that come within a second."""
        return self.running + ceil(self.requests_per_s)


@dataclass(frozen=True, slots=True)
class Broken:
    """A limit that is reached, and when it will not be."""

    violation: Violation
    retry_after_s: float


class Account:
    """One tenant in one process. Holds a few numbers, whatever the tenant does.

    Args:
        tenant: With its limits; `renew` when they have changed.
        now: Monotonic seconds.
    """

    def __init__(self, tenant: Tenant, now: float) -> None:
        self.tenant = tenant
        self.running = 0
        self.refused = 0
        self.last = now
        """When it was asked for something last."""
        self._demands: Sequence[Demand] = (Demand(),)
        self._mine = 0
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._slots = Slots()
        self._asked_requests, self._asked_tokens = Rate(now), Rate(now)
        self._usual_tokens = 0.0
        self._usual_s = 1.0
        self._cut(now)

    # --- how much is its own ---------------------------------------------------------------------------

    def renew(self, tenant: Tenant, now: float) -> None:
        """Its limits may have changed."""
        if tenant is not self.tenant:
            self.tenant = tenant
            self._cut(now)

    def follow(self, demands: Sequence[Demand], mine: int, now: float) -> None:
        """What it asks of every process; at `mine` what this one has announced."""
        if mine != self._mine or demands != self._demands:
            self._demands, self._mine = demands, mine
            self._cut(now)

    def _cut(self, now: float) -> None:
        tenant, demands, mine = self.tenant, self._demands, self._mine
        rate = share(tenant.requests_per_s, [each.requests_per_s for each in demands], mine)
        # One goes in at level 0.
        room = max(rate * BURST_S - 1, 0.0)
        self._requests = _bucket(self._requests, rate, room, room, now)
        rate = share(tenant.tokens_per_min / 60, [each.tokens_per_s for each in demands], mine)
        # Empty at first: it may begin, and a restart is worth nothing.
        self._tokens = _bucket(self._tokens, rate, rate * BURST_S, 0.0, now)
        if tenant.max_concurrency:
            wants, held = [each.slots for each in demands], [each.running for each in demands]
            # By a hash that is the same in every process, which Python's own is not.
            some = slots(tenant.max_concurrency, wants, held, mine, first=crc32(tenant.name.encode()))
            # With fewer slots than processes some have none; who has none may use one that nobody uses.
            spare = sum(held) - held[mine] < tenant.max_concurrency
            self._slots.set(some or int(spare), now)

    # --- requests --------------------------------------------------------------------------------------

    def rate_broken(self, now: float) -> Iterator[Broken]:
        """Whether one more request per second is too many."""
        limit = self.tenant.requests_per_s
        if self._requests is not None and (wait_s := self._debt_s(self._requests, limit, now)):
            yield self._broken("requests_per_s", f"more than {limit:g} per second", wait_s)

    def room_broken(self, now: float) -> Iterator[Broken]:
        """Whether its tokens are used up, or too many requests are in flight."""
        limit = self.tenant.tokens_per_min / 60
        if self._tokens is not None and (wait_s := self._debt_s(self._tokens, limit, now)):
            yield self._broken("tokens_per_min", f"more than {self.tenant.tokens_per_min} per minute", wait_s)
        most = self.tenant.max_concurrency
        if most and self.running >= (here := self._slots.at(now)):
            what = f"more than {most} in flight" + (f", {here} of them here" if here != most else "")
            wait_s = min(max(self._usual_s / max(self.running, 1), SHORTEST_S), LONGEST_S)
            yield self._broken("max_concurrency", what, wait_s)

    def _broken(self, limit: str, what: str, wait_s: float) -> Broken:
        return Broken(Violation(f"tenant/{self.tenant.name}/{limit}", what), wait_s)

    def _debt_s(self, bucket: Bucket, limit: float, now: float) -> float:
        """When a debt is paid: at the rate of the share as it is, or, once the others have heard that something is
        asked here, of an equal share; whichever is sooner."""
        wait_s, equal = bucket.wait_s(now), limit / len(self._demands)
        return min(wait_s, HEARD_S + wait_s * bucket.rate / equal)

    def came(self, now: float) -> None:
        """A request is at the door."""
        self.last = now
        self._asked_requests.add(1, now)

    def pay(self, now: float) -> None:
        """It may try: its place in the rate of requests is taken."""
        if self._requests is not None:
            self._requests.take(1, now)

    def refuse(self, tokens: int | None, now: float) -> None:
        """It was refused; `tokens` is None where nobody has counted them."""
        self.refused += 1
        self._ask(self._usual_tokens if tokens is None else tokens, now)

    def begin(self, tokens: int, now: float) -> int:
        """It goes in; returns the tokens that were reserved."""
        self._ask(tokens, now)
        self._usual_tokens += (tokens - self._usual_tokens) * (LEARNING if self._usual_tokens else 1.0)
        self.running += 1
        if self._tokens is None:
            return 0
        self._tokens.take(tokens, now)
        return tokens

    def end(self, reserved: int, used: int, lasted_s: float, now: float) -> None:
        """It has ended; what was reserved and not used is given back."""
        self.last = now
        self.running -= 1
        self._usual_s += (lasted_s - self._usual_s) * LEARNING
        if self._tokens is not None and reserved:
            self._tokens.take(used - reserved, now)

    def _ask(self, tokens: float, now: float) -> None:
        self.last = now
        self._asked_tokens.add(tokens, now)

    # --- what others are told --------------------------------------------------------------------------

    def demand(self, now: float) -> Demand:
        """What it asks of this process now."""
        return Demand(
            _three_digits(self._asked_requests.at(now)),
            _three_digits(self._asked_tokens.at(now)),
            self.running if self.tenant.max_concurrency else 0,
        )

    def weight(self, now: float) -> float:
        """How much it asks for against its limits: the larger, the more others need to know of it."""
        tenant, asked = self.tenant, self.demand(now)
        limits = (tenant.requests_per_s, tenant.tokens_per_min / 60, tenant.max_concurrency)
        asks = (asked.requests_per_s, asked.tokens_per_s, asked.running)
        return max((ask / limit for ask, limit in zip(asks, limits, strict=True) if limit), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second that it may have here; infinite without a limit."""
        return inf if self._tokens is None else self._tokens.rate


def _bucket(old: Bucket | None, rate: float, capacity: float, level: float, now: float) -> Bucket | None:
    if not rate:
        return None
    if old is None:
        return Bucket(rate, capacity, level, now)
    old.set(rate, capacity, now)
    return old


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}") if value > NOTHING else 0.0
