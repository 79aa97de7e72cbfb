"""Fairness between tenants: what each has been served, weighed by its share. Pure.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 24), as S-LoRA's
`vtc_req_queue` has it: whoever has been served least goes next. Served is counted in prompt tokens, and in
answer tokens that count twice, divided by the tenant's weight. Who begins to wait is lifted to the lowest of those
that wait already: time in which a tenant asked for nothing gives it no credit.

Two things differ from the paper. A work is charged whole when it is dispatched, with the answer that is expected, and
corrected once when it ends: nothing is paid per token. And the counters are integers, in fixed point: a correction
takes back exactly what was charged, however long the process runs, so that they need no new zero.
"""

from typing import Protocol

from services.batcher.ordered import LazyHeap

INPUT_COST = 1
OUTPUT_COST = 2
"""What a token costs: the prices of the paper and of S-LoRA. An answer's token takes a step of its own."""

UNIT = 1024
"""Parts of a token in which is counted."""

MAX_CREDIT = 4_000_000
"""Tokens, by weight, that a tenant that waits may be behind one that is served. Its class, or its pool, may have kept
it waiting for hours; if all of that were owed, it would then shut the others out for as long."""

IDLE_CREDIT = 4_000
"""Tokens, by weight, that a tenant is owed at most when it has been idle: a few requests, so that who sends now and
then need not wait until the others have caught up with its last one. The paper has 0."""

MAX_TENANTS = 10_000


class Waiter(Protocol):
    """Somewhere a tenant waits."""

    def moved(self) -> None:
        """Is called when the tenant's counter has changed."""


class Account:
    """What one tenant has been served."""

    __slots__ = ("served", "tenant", "waiters")

    def __init__(self, tenant: str, served: int) -> None:
        self.tenant = tenant
        self.served = served
        """In UNITs of a token, by its weight. Counters only have a meaning beside each other."""
        self.waiters: list[Waiter] = []
        """One for each line in which works of it wait."""


class Counters:
    """The counters of all tenants; one object for all queues whose service is to count as one.

    Bounded: a tenant that does not wait is forgotten when coming back would lift it anyway. When there are more than
    `tenants` nevertheless, those that do not wait are forgotten, the least served first: what these had been served
    beyond the others is forgotten with them. Tenants that wait are bounded by the queues.
    Counters do not drift apart either: see MAX_CREDIT; who was idle is lifted.

    Who has been idle is owed `idle` tokens at most: its counter is lifted to so much below the lowest of those that
    wait. No counter is ever lowered: who used its share is owed nothing, however often it comes and goes.

    What a tenant is served in one queue counts in the others. A tenant that is served fast in one queue is behind
    in a second one, as long as that goes on; where the queues have nothing in common, each needs counters of its own.
    """

    def __init__(self, tenants: int = MAX_TENANTS, credit: int = MAX_CREDIT, idle: int = 0) -> None:
        self._limit = tenants
        self._credit = credit * UNIT
        self._idle = idle * UNIT
        self._sweep_at = min(tenants, 256)
        self._accounts: dict[str, Account] = {}
        self._waiting: LazyHeap[str] = LazyHeap()
        """Tenants that wait, by counter."""
        self._left: Account | None = None
        """Of those that waited, the last that ceased to."""
        self._charged, self._prompts = 0, 0

    def charge(self, tenant: str, input_tokens: int, output_tokens: int, weight: float = 1.0) -> None:
        """Counts a work that is dispatched, with the answer that is expected of it.

        Raises ValueError unless the weight is above 0.
        """
        account = self._account(tenant)
        before = account.served
        self._move(account, _price(INPUT_COST * input_tokens, weight) + _price(OUTPUT_COST * output_tokens, weight))
        self._learn(input_tokens, output_tokens)
        lowest = self._waiting.top()
        if lowest is not None and before - lowest[0] > self._credit:
            self._limit_credit(before, int(lowest[0]))

    def settle(self, tenant: str, expected_tokens: int, actual_tokens: int, weight: float = 1.0) -> None:
        """Corrects a charge when the work has ended; `expected_tokens` and `weight` are those of the charge."""
        change = _price(OUTPUT_COST * actual_tokens, weight) - _price(OUTPUT_COST * expected_tokens, weight)
        self._charged += OUTPUT_COST * (actual_tokens - expected_tokens)
        # Of a tenant that was forgotten no debt is left that could be reduced.
        if change > 0 or tenant in self._accounts:
            self._move(self._account(tenant), change)

    def take_back(self, tenant: str, input_tokens: int, output_tokens: int, weight: float = 1.0) -> None:
        """Undoes a charge, given as it was, of a work that did not run after all."""
        self.settle(tenant, output_tokens, 0, weight)
        self._charged -= INPUT_COST * input_tokens
        self._prompts -= input_tokens
        if tenant in self._accounts:
            self._move(self._accounts[tenant], -_price(INPUT_COST * input_tokens, weight))

    def served(self, tenant: str) -> float:
        """A tenant's counter, in tokens by weight, as it would be if it began to wait now."""
        account = self._accounts.get(tenant)
        if account is None:
            return self._floor() / UNIT
        return (account.served if account.waiters else max(account.served, self._floor())) / UNIT

    @property
    def cost(self) -> float:
        """What a work costs for each token of its prompt, lately and on average; at least 1."""
        return max(self._charged / self._prompts, 1.0) if self._prompts else 1.0

    def enter(self, tenant: str, waiter: Waiter) -> Account:
        """A tenant begins to wait somewhere. If it waited nowhere before, it is lifted."""
        account = self._account(tenant)
        if not account.waiters:
            account.served = max(account.served, self._floor())
            self._waiting.set(tenant, account.served)
        account.waiters.append(waiter)
        return account

    def join(self, account: Account, lowest: float) -> None:
        """A tenant that has waited where it had no turns begins to have some beside others, of which `lowest` is the
        lowest counter. It is owed no more than who was idle: its share from now on, and not that of all the time."""
        lifted = int(lowest) - self._idle
        if lifted > account.served:
            self._move(account, lifted - account.served)

    def leave(self, account: Account, waiter: Waiter) -> None:
        """It ceases to wait there."""
        account.waiters.remove(waiter)
        if not account.waiters:
            self._waiting.discard(account.tenant)
            self._left = account

    def __len__(self) -> int:
        return len(self._accounts)

    def check_integrity(self) -> None:
        """Raises AssertionError when the order of those that wait is not that of their counters."""
        waiting = {name: one.served for name, one in self._accounts.items() if one.waiters}
        assert {name: self._waiting.get(name) for name in self._waiting} == waiting
        assert all(name == one.tenant for name, one in self._accounts.items())
        self._waiting.check_integrity()

    def _floor(self) -> int:
        """What the counter of who has been idle is lifted to: the lowest of those that wait, or, if none does, that of
        the one that waited last; less the credit."""
        lowest = self._waiting.top()
        if lowest is not None:
            return int(lowest[0]) - self._idle
        return self._left.served - self._idle if self._left is not None else 0

    def _account(self, tenant: str) -> Account:
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= self._sweep_at:
                self._sweep()
            account = self._accounts[tenant] = Account(tenant, self._floor())
        return account

    def _move(self, account: Account, change: int) -> None:
        account.served += change
        if account.waiters:
            self._waiting.set(account.tenant, account.served)
            for waiter in account.waiters:
                waiter.moved()

    def _limit_credit(self, served: int, lowest: int) -> None:
        """Moves up those that wait, all by as much: their order among each other stays.

        They end half of the credit behind, so that this is rare: it costs as much as there are tenants.
        """
        lift = served - lowest - self._credit // 2
        for tenant in list(self._waiting):
            account = self._accounts[tenant]
            lifted = min(account.served + lift, served)
            if lifted > account.served:
                self._move(account, lifted - account.served)

    def _learn(self, input_tokens: int, output_tokens: int) -> None:
        self._charged += INPUT_COST * input_tokens + OUTPUT_COST * output_tokens
        self._prompts += input_tokens
        if self._prompts > 1 << 24:  # half of what is old is forgotten
            self._charged //= 2
            self._prompts //= 2

    def _sweep(self) -> None:
        """Forgets tenants; so rarely that it costs nothing for each that comes."""
        floor = self._floor()
        kept = {name: one for name, one in self._accounts.items() if one.waiters or one.served > floor}
        if len(kept) > self._limit * 3 // 4:
            idle = sorted((one for one in kept.values() if not one.waiters), key=lambda one: one.served)
            for one in idle[: len(kept) - self._limit // 2]:
                del kept[one.tenant]
        self._accounts = kept
        self._sweep_at = max(min(2 * len(kept), self._limit), len(kept) + self._limit // 4, 1)


def _price(tokens: int, weight: float) -> int:
    if weight <= 0:
        raise ValueError(f"a tenant's weight is above 0, not {weight:g}")
    return round(tokens * UNIT / weight)
