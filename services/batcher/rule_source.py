"""Keeps the batcher's rules as the operators have them: etcd's messages in, values out."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec, resolve, salted
from libs.lane.work import Tier
from libs.registry import keys
from libs.registry.registry import Registry
from libs.tokens.blocks import chain, salt
from services.batcher.hot import Prefix
from services.batcher.queue import Limits
from services.batcher.rules import STRETCH, TARGET_S, PinnedPrefix, TierRules
from services.batcher.scheduling import Dispatch, Reserve, SchedulingRules

DEFAULT = "default"
"""The rules of all models that have none of their own."""


class RuleSource:
    """Mirrors of tiers, scheduling and pins, as services.batcher.rules.Rules."""

    def __init__(self, registry: Registry) -> None:
        self._tiers = registry.mirror(keys.TIERS, policy_pb2.TierPolicy)
        self._scheduling = registry.mirror(keys.SCHEDULING, policy_pb2.Scheduling)
        self._pins = registry.mirror(keys.PINS, policy_pb2.Pin)
        self._models = registry.mirror(keys.MODELS, registry_pb2.Model)
        self._stack = AsyncExitStack()
        self._tier_rules = {tier: tier_rules(tier, policy_pb2.TierPolicy()) for tier in Tier}
        self._of_models: dict[str, SchedulingRules] = {}
        self._of_pools: dict[str, list[PinnedPrefix]] = {}

    async def start(self) -> None:
        """Returns once everything has been read, however long etcd takes to come."""
        for mirror in (self._tiers, self._scheduling, self._pins, self._models):
            await self._stack.enter_async_context(mirror)
        for read, mirrors in ((self._read, (self._tiers, self._scheduling)), (self._pin, (self._pins, self._models))):
            read()
            for mirror in mirrors:
                mirror.on_change(read)

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def tier(self, tier: Tier) -> TierRules:
        """See Rules."""
        return self._tier_rules[tier]

    def scheduling(self, model: str) -> SchedulingRules:
        """See Rules."""
        return self._of_models.get(model) or self._of_models.get(DEFAULT) or SchedulingRules()

    def pins(self, pool: str) -> Sequence[PinnedPrefix]:
        """See Rules."""
        return self._of_pools.get(pool, ())

    def _read(self) -> None:
        tiers = {tier: self._tiers.items.get(tier.name.lower(), policy_pb2.TierPolicy()) for tier in Tier}
        self._tier_rules = {tier: tier_rules(tier, message) for tier, message in tiers.items()}
        self._of_models = {name: scheduling_rules(message) for name, message in self._scheduling.items.items()}

    def _pin(self) -> None:
        specs = resolve(self._models.items)
        self._of_pools = {}
        for name, pin in self._pins.items.items():
            spec = specs.get(pin.model)
            if spec is not None and spec.block_tokens and len(pin.token_ids) >= spec.block_tokens:
                self._of_pools.setdefault(spec.pool, []).append(pinned(name, pin, spec))


_DISPATCHES = {int(dispatch): dispatch for dispatch in Dispatch}
_RESERVES = {int(reserve): reserve for reserve in Reserve}


def tier_rules(tier: Tier, message: policy_pb2.TierPolicy) -> TierRules:
    """Reads the message; what is unset gets its default."""
    limits = Limits(
        message.max_waiting or Limits().works,
        message.max_waiting_tokens or Limits().tokens,
        message.age.ToTimedelta().total_seconds() or Limits().age_s,
    )
    target_s = message.target_first_token.ToTimedelta().total_seconds() or TARGET_S[tier]
    return TierRules(limits, target_s, message.target_stretch or STRETCH)


def scheduling_rules(message: policy_pb2.Scheduling) -> SchedulingRules:
    """Reads the message; what is unset gets its default, and so does a policy that a newer console knows and this
    process does not."""
    default = SchedulingRules()
    return SchedulingRules(
        _DISPATCHES.get(message.dispatch, default.dispatch),
        _RESERVES.get(message.reserve, default.reserve),
        message.overcommit or default.overcommit,
        message.quantile or default.quantile,
        message.prefill_ahead_s or default.prefill_ahead_s,
        message.max_hold_s or default.max_hold_s,
        message.max_pushes or default.max_pushes,
        message.headroom or default.headroom,
        message.warm_prefixes or default.warm_prefixes,
        message.cold_start,
    )


def pinned(name: str, pin: policy_pb2.Pin, spec: ModelSpec) -> PinnedPrefix:
    """The whole blocks of a pin, under the hashes that works of its model have."""
    own = salted(spec.salt, pin.tenant)
    whole = len(pin.token_ids) // spec.block_tokens * spec.block_tokens
    tokens = tuple(pin.token_ids[:whole])
    hashes = tuple(chain(tokens, spec.block_tokens, salt(spec.base or spec.name, own)))
    return PinnedPrefix(name, Prefix(tokens, hashes, spec.adapter, own, spec.name), pin.copies)
