"""The rules that hold, as plain values. Pure; `policy_source` reads them from the registry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.catalogue import ModelSpec
from libs.lane.work import Tier


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody who may use the mesh; field meanings: policy.proto. 0 means no limit of its own."""

    name: str
    operator: bool = False
    models: frozenset[str] = frozenset()
    max_prompt_tokens: int = 0
    max_output_tokens: int = 0
    max_concurrency: int = 0
    default_tier: Tier = Tier.INTERACTIVE
    weight: float = 1.0
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """Deadlines of a tier, in seconds."""

    default_timeout_s: float = 60.0
    max_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that admission decides by; replaced as a whole when the registry changes."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    """By SHA-256 of the API key, in hexadecimal."""
    tiers: Mapping[Tier, TierPolicy] = field(default_factory=dict)
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Everything that can be asked for, adapters included."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    tenants_off: Mapping[str, str] = field(default_factory=dict)
    """Tenants that a kill switch covers, with the reason."""
    models_off: Mapping[str, str] = field(default_factory=dict)
    """Models that a kill switch covers, with the reason."""

    def model(self, name: str) -> ModelSpec | None:
        """The model behind a name or an alias."""
        return self.models.get(self.aliases.get(name, name))

    def usable(self, tenant: Tenant) -> Sequence[str]:
        """Names and aliases that a tenant may ask for, in order."""
        names = [*self.models, *(alias for alias, model in self.aliases.items() if model in self.models)]
        return sorted(name for name in names if may_use(tenant, name, self.aliases.get(name, name)))


def may_use(tenant: Tenant, name: str, model: str) -> bool:
    """Whether a tenant may use a model under a name."""
    return not tenant.models or name in tenant.models or model in tenant.models
