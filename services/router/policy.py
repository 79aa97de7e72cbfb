"""Rules of routing as plain values; field meanings: policy.proto. Pure; `policy_values` reads them from messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.lane.work import Tier


@dataclass(frozen=True, slots=True)
class Rule:
    """Which requests run elsewhere; everything that is set has to hold."""

    name: str
    model: str
    tenants: frozenset[str] = frozenset()
    tier: Tier | None = None
    min_prompt_tokens: int = 0
    max_prompt_tokens: int = 0
    """0: any."""
    intents: frozenset[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    min_waiting: int = 0


@dataclass(frozen=True, slots=True)
class Fallback:
    """What is tried when a model cannot answer: exactly one is set."""

    model: str = ""
    wait_s: float = 0.0
    reject: bool = False


@dataclass(frozen=True, slots=True)
class Canary:
    """A share of the requests goes to another model."""

    model: str
    share: float = 0.0
    tenants: frozenset[str] = frozenset()
    sticky_tag: str = ""


@dataclass(frozen=True, slots=True)
class Shadow:
    """A copy of a share of the requests goes to another model, unseen."""

    model: str
    share: float = 0.0
    tenants: frozenset[str] = frozenset()
    max_in_flight: int = 8


@dataclass(frozen=True, slots=True)
class Hedge:
    """A slow interactive request is sent twice."""

    quantile: float = 0.95
    max_share: float = 0.05
    model: str = ""
    """Of the copy; empty: the same."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A cheaper model is asked first."""

    models: Sequence[str]
    """From the cheapest on."""
    min_mean_log_prob: float = 0.0
    """0: not looked at."""
    check_schema: bool = False
    refusal_patterns: Sequence[str] = ()
    stream_first: bool = False


@dataclass(frozen=True, slots=True)
class RouteRules:
    """What runs behind an alias."""

    alias: str
    model: str
    rules: Sequence[Rule] = ()
    fallbacks: Sequence[Fallback] = ()
    canary: Canary | None = None
    shadow: Shadow | None = None
    hedge: Hedge | None = None
    cascade: Cascade | None = None
    small_model: str = ""


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a pool is left alone, and for how long."""

    error_share: float = 0.5
    min_works: int = 10
    window_s: float = 10.0
    open_s: float = 5.0
    probes: int = 3


DEFAULT = "default"
"""The name of the breaker's rule for all models that have none of their own."""
