"""Reads the rules from the registry and keeps them fresh: etcd's messages in, a `Policy` out."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from math import inf

from google.protobuf import struct_pb2

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import resolve
from libs.lane.neighbours import HOLD_S
from libs.lane.work import Tier
from libs.registry import keys
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from services.admission.policy import Policy, Tenant, TierPolicy


class PolicySource:
    """Mirrors of everything that admission decides by.

    Args:
        changed: Called after each change, with the new policy in place.
    """

    def __init__(self, registry: Registry, changed: Callable[[Policy], None]) -> None:
        self.policy = Policy()
        self.tenants = registry.mirror(keys.TENANTS, policy_pb2.Tenant)
        self.tiers = registry.mirror(keys.TIERS, policy_pb2.TierPolicy)
        self.routes = registry.mirror(keys.ROUTES, policy_pb2.Route)
        self.switches = registry.mirror(keys.SWITCHES, policy_pb2.Switch)
        self.models = registry.mirror(keys.MODELS, registry_pb2.Model)
        self.executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=HOLD_S)
        self._changed = changed
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once everything has been read, however long etcd takes to come."""
        rules: Sequence[Mirror] = (self.tenants, self.tiers, self.routes, self.switches, self.models)  # type: ignore[type-arg]
        for mirror in (*rules, self.executors):
            await self._stack.enter_async_context(mirror)
        self._apply()
        for mirror in rules:
            mirror.on_change(self._apply)

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def ready(self, model: str) -> bool:
        """Whether an executor can answer for a model, or for the base of an adapter, now."""
        spec = self.policy.models.get(model)
        return any(
            spec is not None and held.model == (spec.base or model) and held.state == registry_pb2.MODEL_STATE_READY
            for executor in self.executors.items.values()
            for held in executor.models
        )

    def labels(self, model: str) -> struct_pb2.Struct:
        """What the catalogue says about a model in free text."""
        return self.models.items[model].labels

    def _apply(self) -> None:
        switches = self.switches.items.values()
        self.policy = Policy(
            tenants={
                digest.lower(): _tenant(tenant)
                for tenant in self.tenants.items.values()
                for digest in tenant.key_sha256
            },
            tiers={Tier(t.tier): _tier(t) for t in self.tiers.items.values() if t.tier in (1, 2)},
            models=resolve(self.models.items),
            aliases={alias: route.model for alias, route in self.routes.items.items()},
            tenants_off={s.name: s.reason for s in switches if s.kind == policy_pb2.SWITCH_KIND_TENANT},
            models_off={s.name: s.reason for s in switches if s.kind == policy_pb2.SWITCH_KIND_MODEL},
        )
        self._changed(self.policy)


def _tenant(message: policy_pb2.Tenant) -> Tenant:
    return Tenant(
        name=message.name,
        operator=message.operator,
        models=frozenset(message.models),
        max_prompt_tokens=message.max_prompt_tokens,
        max_output_tokens=message.max_output_tokens,
        max_concurrency=message.max_concurrency,
        default_tier=Tier(message.default_tier) if message.default_tier in (1, 2) else Tier.INTERACTIVE,
        weight=message.weight if 0 < message.weight < inf else 1.0,
        isolated=message.isolated,
    )


def _tier(message: policy_pb2.TierPolicy) -> TierPolicy:
    rules = TierPolicy()
    return TierPolicy(
        default_timeout_s=message.default_timeout.ToMicroseconds() / 1e6 or rules.default_timeout_s,
        max_timeout_s=message.max_timeout.ToMicroseconds() / 1e6 or rules.max_timeout_s,
    )
