"""Rules of routing as etcd has them, as plain values. What makes no sense counts as not said: whoever wrote it past
the rules of policies must not stop the router."""

from math import isfinite

from google.protobuf.duration_pb2 import Duration

from headrace.policy.v1 import policy_pb2
from libs.lane.work import Tier
from services.router.policy import BreakerRule, Canary, Cascade, Fallback, Hedge, RouteRules, Rule, Shadow

MOST_CASCADE = 4
"""Models of a cascade that count."""
MOST_FALLBACKS = 8
"""Fallbacks that count."""


def route(message: policy_pb2.Route) -> RouteRules:
    """A route whole."""
    return RouteRules(
        alias=message.alias,
        model=message.model,
        rules=tuple(_rule(each) for each in message.rules),
        fallbacks=tuple(_fallback(each) for each in message.fallbacks[:MOST_FALLBACKS]),
        canary=_canary(message.canary) if message.canary.model else None,
        shadow=_shadow(message.shadow) if message.shadow.model else None,
        hedge=_hedge(message.hedge) if message.HasField("hedge") else None,
        cascade=_cascade(message.cascade) if message.cascade.models else None,
        small_model=message.small_model,
    )


def breaker(message: policy_pb2.Breaker) -> BreakerRule:
    """A breaker's rule."""
    rule = BreakerRule()
    return BreakerRule(
        error_share=_share(message.error_share) or rule.error_share,
        min_works=message.min_works or rule.min_works,
        window_s=_seconds(message.window) or rule.window_s,
        open_s=_seconds(message.open_for) or rule.open_s,
        probes=message.probes or rule.probes,
    )


def _rule(message: policy_pb2.RouteRule) -> Rule:
    return Rule(
        name=message.name,
        model=message.model,
        tenants=frozenset(message.tenants),
        tier=Tier(message.tier) if message.tier in (1, 2) else None,
        min_prompt_tokens=message.min_prompt_tokens,
        max_prompt_tokens=message.max_prompt_tokens,
        intents=frozenset(message.intents),
        tags=dict(message.tags),
        capabilities=frozenset(message.capabilities),
        min_waiting=message.min_waiting,
    )


def _fallback(message: policy_pb2.Fallback) -> Fallback:
    return Fallback(message.model, _seconds(message.wait), message.reject)


def _canary(message: policy_pb2.Canary) -> Canary:
    return Canary(message.model, _share(message.share), frozenset(message.tenants), message.sticky_tag)


def _shadow(message: policy_pb2.Shadow) -> Shadow:
    most = message.max_in_flight or Shadow("").max_in_flight
    return Shadow(message.model, _share(message.share), frozenset(message.tenants), most)


def _hedge(message: policy_pb2.Hedge) -> Hedge:
    rule = Hedge()
    return Hedge(_share(message.quantile) or rule.quantile, _share(message.max_share) or rule.max_share, message.model)


def _cascade(message: policy_pb2.Cascade) -> Cascade:
    return Cascade(
        models=tuple(message.models[:MOST_CASCADE]),
        min_mean_log_prob=message.min_mean_log_prob if isfinite(message.min_mean_log_prob) else 0.0,
        check_schema=message.check_schema,
        refusal_patterns=tuple(message.refusal_patterns),
        stream_first=message.stream_first,
    )


def _share(value: float) -> float:
    return value if 0 <= value <= 1 else 0.0


def _seconds(duration: Duration) -> float:
    return max(duration.ToMicroseconds() / 1e6, 0.0)
