"""Reads the rules from the registry and keeps them fresh: etcd's messages in, a `Policy` out."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from google.protobuf import struct_pb2

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import resolve
from libs.lane.neighbours import HOLD_S
from libs.lane.work import Tier
from libs.registry import keys
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from services.admission import policy_values
from services.admission.policy import Policy, Tenant


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
        self.issuers = registry.mirror(keys.ISSUERS, policy_pb2.TokenIssuer)
        self.contracts = registry.mirror(keys.CONTRACTS, policy_pb2.Contract)
        self.tools = registry.mirror(keys.TOOLS, policy_pb2.Tool)
        self.models = registry.mirror(keys.MODELS, registry_pb2.Model)
        self.executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=HOLD_S)
        self._changed = changed
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once everything has been read, however long etcd takes to come."""
        rules: Sequence[Mirror] = (  # type: ignore[type-arg]
            self.tenants, self.tiers, self.routes, self.switches, self.models, self.issuers, self.contracts, self.tools,
        )  # fmt: skip
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

    def audit_days(self, tenant: str) -> int:
        """For how many days a tenant's entries in the audit log are kept."""
        message = self.tenants.items.get(tenant)
        return (message.audit_days if message is not None else 0) or Tenant("").audit_days

    def models_of_aliases(self) -> dict[str, str]:
        """What each route's alias stands for, where no rule says otherwise."""
        return {alias: route.model for alias, route in self.policy.aliases.items()}

    def labels(self, model: str) -> struct_pb2.Struct:
        """What the catalogue says about a model in free text."""
        return self.models.items[model].labels

    def _apply(self) -> None:
        tenants = [(policy_values.tenant(message), message) for message in self.tenants.items.values()]
        self.policy = Policy(
            by_name={tenant.name: tenant for tenant, _ in tenants},
            tenants={digest.lower(): tenant for tenant, message in tenants for digest in message.key_sha256},
            certificates={name: tenant for tenant, message in tenants for name in message.certificate_names},
            subjects={(s.issuer, s.subject): tenant for tenant, message in tenants for s in message.token_subjects},
            issuers={issuer.issuer: policy_values.issuer(issuer) for issuer in self.issuers.items.values()},
            tiers={Tier(t.tier): policy_values.tier(t) for t in self.tiers.items.values() if t.tier in (1, 2)},
            models=resolve(self.models.items),
            aliases={alias: policy_values.alias(route) for alias, route in self.routes.items.items()},
            contracts={name: policy_values.contract(message) for name, message in self.contracts.items.items()},
            tools={name: policy_values.tool(message) for name, message in self.tools.items.items()},
            tenants_off=self._off(policy_pb2.SWITCH_KIND_TENANT),
            models_off=self._off(policy_pb2.SWITCH_KIND_MODEL),
            tools_off=self._off(policy_pb2.SWITCH_KIND_TOOL),
            features_off=self._off(policy_pb2.SWITCH_KIND_FEATURE),
        )
        self._changed(self.policy)

    def _off(self, kind: "policy_pb2.SwitchKind.ValueType") -> dict[str, str]:
        return {switch.name: switch.reason for switch in self.switches.items.values() if switch.kind == kind}
