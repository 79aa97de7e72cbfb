"""Tenants' limits over all admission processes together: requests per second, tokens per minute, requests in flight.
Pure: `exchange` carries what processes tell each other.

Each process tells the others what its tenants ask of it, and cuts each limit into shares by what all have told
(`shares`). A share is a limit of the process's own, kept by token buckets (`bucket`): nobody is asked about a request.

How far this can be off. Let r be a rate, n the number of processes, and R the most tokens that one request reserves.
Over any time T, of all processes together, what gets through is at most

    r · T + r · BURST_S + n · R + E

where E is what the shares were more than the limit, added up over T. While all processes know the same, their shares
are the limit and nothing of E arises. While an announcement by which a want moves by d (at most r counts) is on its
way, the shares are at most d above: an announcement that takes δ seconds to reach the last process costs at most d · δ
tokens. A process that starts or goes moves a want by r at most. While etcd is away nothing moves, and E stands still.

Requests in flight: never more than the limit, as long as announcements arrive within RIPE_S; but for limits smaller
than n. Of those, a process without a share may use one that nobody uses, and while announcements are on their way up
to n - 1 more can slip in so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import msgspec

from libs.errors import QuotaExceeded
from services.admission.limits.account import Account, Broken, Demand
from services.admission.policy import Tenant

TOLD_S = 60.0
"""A tenant is told of for this long after its last request."""
MOST_TOLD = 200
"""Tenants that a process tells of: those that ask for the most against their limits. Of the others nobody knows, so
they have equal shares everywhere."""
MOST_ACCOUNTS = 10_000
"""Tenants that are remembered; of more, those that are idle and came longest ago are forgotten."""

Told = Mapping[str, Mapping[str, Demand]]
"""What each process has announced: by instance, then by tenant."""


class Ticket(msgspec.Struct):
    """A request that is in; to be settled when it ends."""

    tenant: str
    reserved: int
    """Tokens; 0 where nothing limits them."""
    began: float
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a tenant stands in this process."""

    requests_per_s: float = 0.0
    """That came lately, refused ones included."""
    tokens_per_min: float = 0.0
    """That these asked for."""
    tokens_per_min_allowed: float = 0.0
    """That it may have here now; 0 without a limit."""
    running: int = 0
    refused: int = 0
    """Since this process started, by a limit."""


class Limits:
    """The limits as one process keeps them. Every `now` is in monotonic seconds.

    Args:
        instance: This process.
    """

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._told: Told = {}
        self._instances: Sequence[str] = (instance,)
        self._accounts: dict[str, Account] = {}

    # --- requests --------------------------------------------------------------------------------------

    def knock(self, tenant: Tenant, now: float) -> None:
        """A request is at the door: before any work on it. It counts against requests per second from here on.

        Raises QuotaExceeded with every limit that is reached.
        """
        account = self._account(tenant, now)
        account.came(now)
        self._refuse(account, None, [*account.rate_broken(now), *account.room_broken(now)], now)
        account.pay(now)

    def enter(self, tenant: Tenant, tokens: int, now: float) -> Ticket:
        """A request behind `knock` that may reach `tokens`, prompt and answer: they are reserved.

        Raises QuotaExceeded with every limit that is reached; then nothing is reserved.
        """
        account = self._account(tenant, now)
        self._refuse(account, tokens, list(account.room_broken(now)), now)
        return Ticket(tenant.name, account.begin(tokens, now), now)

    def settle(self, ticket: Ticket, used_tokens: int, now: float) -> None:
        """A request that was in has ended, well or not, and used so many tokens. Raises ValueError the second time."""
        if ticket.settled:
            raise ValueError(f"a request of tenant {ticket.tenant} was settled before")
        ticket.settled = True
        self._accounts[ticket.tenant].end(ticket.reserved, used_tokens, now - ticket.began, now)

    def broken(self, tenant: Tenant, now: float) -> Sequence[Broken]:
        """Limits that would refuse a request now. Changes nothing."""
        account = self._account(tenant, now)
        return [*account.rate_broken(now), *account.room_broken(now)]

    def _refuse(self, account: Account, tokens: int | None, broken: Sequence[Broken], now: float) -> None:
        if not broken:
            return
        account.refuse(tokens, now)
        violations = [each.violation for each in broken]
        raise QuotaExceeded(
            f"tenant {account.tenant.name} has reached its limit: {'; '.join(v.description for v in violations)}",
            metadata={"limits": ",".join(v.subject.rpartition("/")[2] for v in violations)},
            violations=violations,
            retry_after_s=max(each.retry_after_s for each in broken),
        )

    # --- what processes tell each other ----------------------------------------------------------------

    def follow(self, told: Told, now: float) -> None:
        """Shares follow what all processes have announced, this one included.

        All have to take what lies in etcd, also of themselves: else their shares would not add up.
        """
        instances = sorted({*told, self._instance})
        changed = instances != self._instances
        before, self._told, self._instances = self._told, told, instances
        for name, account in self._accounts.items():
            if changed or any(told.get(i, {}).get(name) != before.get(i, {}).get(name) for i in instances):
                self._share_out(account, now)

    def tell(self, now: float) -> Mapping[str, Demand]:
        """What is to be announced: tenants with limits that came lately, at most MOST_TOLD."""
        self._forget()
        lately = [a for a in self._accounts.values() if a.running or now - a.last < TOLD_S]
        weights = {a.tenant.name: a.weight(now) for a in lately}
        asking = [a for a in lately if weights[a.tenant.name] > 0]
        if len(asking) > MOST_TOLD:
            asking = sorted(asking, key=lambda a: -weights[a.tenant.name])[:MOST_TOLD]
        return {a.tenant.name: a.demand(now) for a in asking}

    # --- what operators see ----------------------------------------------------------------------------

    @property
    def tenants(self) -> Iterable[str]:
        """Who has asked for something."""
        return self._accounts.keys()

    def running(self, tenant: str) -> int:
        """Requests in flight here."""
        account = self._accounts.get(tenant)
        return 0 if account is None else account.running

    def stats(self, tenant: str, now: float) -> Standing:
        """How a tenant stands here."""
        if (account := self._accounts.get(tenant)) is None:
            return Standing()
        asked, allowed = account.demand(now), account.tokens_per_s
        return Standing(
            requests_per_s=asked.requests_per_s,
            tokens_per_min=asked.tokens_per_s * 60,
            tokens_per_min_allowed=0.0 if allowed == inf else allowed * 60,
            running=account.running,
            refused=account.refused,
        )

    # --- accounts --------------------------------------------------------------------------------------

    def _account(self, tenant: Tenant, now: float) -> Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant, now)
            self._share_out(account, now)
        else:
            account.renew(tenant, now)
        return account

    def _share_out(self, account: Account, now: float) -> None:
        name, nothing = account.tenant.name, Demand()
        demands = [self._told.get(instance, {}).get(name, nothing) for instance in self._instances]
        account.follow(demands, self._instances.index(self._instance), now)

    def _forget(self) -> None:
        if len(self._accounts) > MOST_ACCOUNTS:
            idle = sorted((a for a in self._accounts.values() if not a.running), key=lambda a: a.last)
            for account in idle[: len(self._accounts) - MOST_ACCOUNTS]:
                del self._accounts[account.tenant.name]


def moved(now: Mapping[str, Demand], told: Mapping[str, Demand]) -> bool:
    """Whether what is asked differs enough from what was told to tell it again: somebody has come or gone, a rate has
    moved by a tenth, or requests in flight by one."""
    if now.keys() != told.keys():
        return True
    return any(_moved(each, told[name]) for name, each in now.items())


def _moved(one: Demand, other: Demand) -> bool:
    pairs = (one.requests_per_s, other.requests_per_s), (one.tokens_per_s, other.tokens_per_s)
    return one.running != other.running or any(abs(a - b) > 0.1 * max(a, b) for a, b in pairs)
