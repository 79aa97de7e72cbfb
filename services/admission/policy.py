"""The rules that hold, as plain values. Pure; `policy_source` reads them from the registry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from libs.catalogue import ModelSpec
from libs.lane.work import Tier


class Storage(IntEnum):
    """What is kept of prompts and answers; the numbers are those of policy.PromptStorage: the lower, the stricter."""

    NONE = 1
    REDACTED = 2
    FULL = 3


@dataclass(frozen=True, slots=True)
class ModelLimit:
    """What a tenant may send to one model; 0 means no limit of its own."""

    max_prompt_tokens: int = 0
    max_output_tokens: int = 0


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
    protected: bool = False
    features: frozenset[str] = frozenset()
    requests_per_s: float = 0.0
    tokens_per_min: int = 0
    model_limits: Mapping[str, ModelLimit] = field(default_factory=dict)
    """By model."""
    prompt_storage: Storage = Storage.REDACTED
    audit_days: int = 30


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of a degradation ladder; of the steps exactly one is set."""

    name: str
    at: float
    """The saturation from which it is in force."""
    clamp_output_tokens: int = 0
    smaller_model: bool = False
    tools_off: bool = False
    no_extras: bool = False
    defer: bool = False
    reject: bool = False


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """Deadlines of a tier, in seconds, and what it gives up under saturation."""

    default_timeout_s: float = 60.0
    max_timeout_s: float = 600.0
    ladder: Sequence[Rung] = ()
    """Mildest first."""
    recover_s: float = 15.0
    """A rung is left when saturation has stayed below its `at` for this long."""


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Somebody whose signed JSON Web Tokens are believed; field meanings: policy.proto."""

    name: str
    issuer: str
    audience: str
    key_set: str
    subject_claim: str = "sub"


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that a model may call."""

    name: str
    description: str
    arguments_schema: str
    url: str
    timeout_s: float = 10.0
    idempotent: bool = False


@dataclass(frozen=True, slots=True)
class ContractTool:
    """A tool within a contract."""

    tool: str
    timeout_s: float = 0.0
    """0: the tool's own."""
    retries: int = 0
    needs_approval: bool = False


@dataclass(frozen=True, slots=True)
class Contract:
    """An agreement that a request may cite; field meanings: policy.proto. 0 means no limit of its own."""

    name: str
    output_schema: str = ""
    repairs: int = 0
    tools: Sequence[ContractTool] = ()
    max_steps: int = 8
    max_prompt_tokens: int = 0
    max_output_tokens: int = 0
    prompt_storage: Storage | None = None
    tenants: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Alias:
    """What admission has to know of a route: the rest is the router's."""

    model: str
    tags: frozenset[str] = frozenset()
    """Tags that its rules look at."""
    text: bool = False
    """Whether its rules look at what was said."""
    others: frozenset[str] = frozenset()
    """Models that may answer instead."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that admission decides by; replaced as a whole when the registry changes."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    """By SHA-256 of the API key, in hexadecimal."""
    by_name: Mapping[str, Tenant] = field(default_factory=dict)
    tiers: Mapping[Tier, TierPolicy] = field(default_factory=dict)
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Everything that can be asked for, adapters included."""
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    certificates: Mapping[str, Tenant] = field(default_factory=dict)
    """Tenants by the names in their client certificates."""
    subjects: Mapping[tuple[str, str], Tenant] = field(default_factory=dict)
    """Tenants by issuer and subject of their tokens."""
    issuers: Mapping[str, TokenIssuer] = field(default_factory=dict)
    """By what their tokens' `iss` says."""
    contracts: Mapping[str, Contract] = field(default_factory=dict)
    tools: Mapping[str, Tool] = field(default_factory=dict)
    tools_off: Mapping[str, str] = field(default_factory=dict)
    """Tools that a kill switch covers, with the reason."""
    features_off: Mapping[str, str] = field(default_factory=dict)
    """Features that a kill switch covers, with the reason."""
    tenants_off: Mapping[str, str] = field(default_factory=dict)
    """Tenants that a kill switch covers, with the reason."""
    models_off: Mapping[str, str] = field(default_factory=dict)
    """Models that a kill switch covers, with the reason."""
    known_access: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `access` has worked out of all this, by tenant and by what was asked for. It goes with the policy."""

    def model(self, name: str) -> ModelSpec | None:
        """The model behind a name or an alias."""
        alias = self.aliases.get(name)
        return self.models.get(name if alias is None else alias.model)

    def usable(self, tenant: Tenant) -> Sequence[str]:
        """Names and aliases that a tenant may ask for, in order."""
        shown = {name: name for name in self.models}
        shown |= {name: alias.model for name, alias in self.aliases.items() if alias.model in self.models}
        return sorted(name for name, model in shown.items() if may_use(tenant, name, model))


def may_use(tenant: Tenant, name: str, model: str) -> bool:
    """Whether a tenant may use a model under a name."""
    return not tenant.models or name in tenant.models or model in tenant.models
