"""Tells the other admission processes, through etcd, what tenants ask of this one; and hears what they say."""

from collections.abc import Mapping

from headrace.registry.v1 import registry_pb2
from libs.clock import Clock
from libs.registry import keys
from libs.registry.announcement import Announcement
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from services.admission.limits.account import Demand
from services.admission.limits.limits import Limits, moved

TTL_S = 5
"""Of the lease: the share of a process that has died is dealt out again."""
EVERY_S = 0.25
"""Between two announcements."""


class LimitsExchange:
    """Keeps this process's Spending in etcd, and its `Limits` informed of everybody's.

    While etcd is away, shares stay as they are: the mirror keeps its copy, and holds back what looks like the end of
    others until they have had the time to announce themselves again.

    Args:
        instance: This process.
        clock: Its monotonic view is the one that `limits` is used with.
    """

    def __init__(self, registry: Registry, instance: str, limits: Limits, clock: Clock) -> None:
        self._instance = instance
        self._limits = limits
        self._clock = clock
        self._announcement: Announcement = registry.announce(keys.limits(instance), TTL_S)
        self._mirror: Mirror[registry_pb2.Spending] = registry.mirror(
            keys.LIMITS, registry_pb2.Spending, hold_deletions_s=2 * TTL_S
        )
        self._said: Mapping[str, Demand] = {}

    async def start(self) -> None:
        """Returns once what the others say is known, however long etcd takes to come. Before requests come in."""
        await self._mirror.start()
        self._mirror.on_change(self._follow)
        self._follow()
        self._announcement.start()
        self._say({})  # so that the others leave a share

    async def close(self) -> None:
        """Takes what was announced back, and ends following."""
        await self._announcement.withdraw()
        await self._mirror.close()

    def tick(self) -> None:
        """Announces what is asked now, if it has moved; to be called every EVERY_S."""
        demands = self._limits.tell(self._clock.monotonic())
        if moved(demands, self._said):
            self._say(demands)

    def _say(self, demands: Mapping[str, Demand]) -> None:
        self._said = demands
        self._announcement.set(
            registry_pb2.Spending(
                instance=self._instance,
                tenants=[
                    registry_pb2.TenantSpending(
                        tenant=tenant,
                        requests_per_s=each.requests_per_s,
                        tokens_per_s=each.tokens_per_s,
                        running=each.running,
                    )
                    for tenant, each in demands.items()
                ],
            )
        )

    def _follow(self) -> None:
        told = {
            instance: {t.tenant: _demand(t) for t in spending.tenants}
            for instance, spending in self._mirror.items.items()
        }
        self._limits.follow(told, self._clock.monotonic())


def _demand(spending: registry_pb2.TenantSpending) -> Demand:
    """What another process says, or nothing where it makes no sense: a share must not come of NaN."""
    requests, tokens = spending.requests_per_s, spending.tokens_per_s
    return Demand(requests if 0 <= requests < 1e12 else 0.0, tokens if 0 <= tokens < 1e12 else 0.0, spending.running)
