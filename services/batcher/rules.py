"""The rules that a batcher schedules by; operators write them, `executor_source` reads them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.lane.work import Tier
from services.batcher.hot import Prefix
from services.batcher.queue import Limits
from services.batcher.scheduling import SchedulingRules

TARGET_S = {Tier.INTERACTIVE: 2.0, Tier.ASYNC: 60.0}
STRETCH = 5.0


@dataclass(frozen=True, slots=True)
class TierRules:
    """What a tier is promised, and how much of it may wait."""

    limits: Limits = Limits()
    target_s: float = TARGET_S[Tier.INTERACTIVE]
    """Seconds within which the first token is to come, or `stretch` times what it would take on an idle executor,
    whichever is longer."""
    stretch: float = STRETCH


@dataclass(frozen=True, slots=True)
class PinnedPrefix:
    """A prefix that executors are to remember."""

    name: str
    prefix: Prefix
    copies: int
    """Executors; 0 means all."""


class Rules(Protocol):
    """The rules as they are now."""

    def tier(self, tier: Tier) -> TierRules:
        """Of a tier."""
        ...

    def scheduling(self, model: str) -> SchedulingRules:
        """Of a model."""
        ...

    def pins(self, pool: str) -> Sequence[PinnedPrefix]:
        """What is pinned in a pool."""
        ...


class FixedRules:
    """Rules that nobody changes: the defaults, tests and simulations."""

    def __init__(self, scheduling: SchedulingRules | None = None, tiers: dict[Tier, TierRules] | None = None) -> None:
        self._scheduling = scheduling or SchedulingRules()
        self._tiers = {tier: TierRules(target_s=TARGET_S[tier]) for tier in Tier} | (tiers or {})

    def tier(self, tier: Tier) -> TierRules:
        return self._tiers[tier]

    def scheduling(self, model: str) -> SchedulingRules:
        return self._scheduling

    def pins(self, pool: str) -> Sequence[PinnedPrefix]:
        return ()
