"""What a route, and a breaker, must obey. No effects."""

from collections.abc import Collection, Iterator, Mapping

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue.rules import Fault
from libs.policy import bounds, patterns

MOST_RULES = 64
MOST_FALLBACKS = 8
MOST_WAIT_S = 600.0
CASCADES = (2, 4)
MOST_IN_FLIGHT = 1000
MOST_TAG_VALUE = 256
MOST_WORKS = 10_000
MOST_WINDOW_S = 600.0
MOST_OPEN_S = 3600.0
MOST_PROBES = 100
_CONDITIONS = (
    "tenants", "tier", "min_prompt_tokens", "max_prompt_tokens", "intents", "tags", "capabilities", "min_waiting",
)  # fmt: skip


def entry(route: policy_pb2.Route) -> Iterator[Fault]:
    """What is wrong with a route by itself."""
    yield from bounds.name(route.alias, "alias")
    if not route.model:
        yield Fault("model", "required")
    yield from _rules(route.rules)
    yield from _fallbacks(route)
    if route.HasField("canary"):
        yield from _canary(route)
    if route.HasField("shadow"):
        if not route.shadow.model:
            yield Fault("shadow.model", "required")
        yield from bounds.share(route.shadow.share, "shadow.share", "the requests")
        yield from bounds.at_most(route.shadow.max_in_flight, "shadow.max_in_flight", MOST_IN_FLIGHT)
    if route.HasField("hedge"):
        if not 0 <= route.hedge.quantile < 1:
            said = "a quantile of times to the first token, more than 0 and less than 1; 0 means 0.95"
            yield Fault("hedge.quantile", f"{route.hedge.quantile:g}: {said}")
        yield from bounds.share(route.hedge.max_share, "hedge.max_share", "the requests")
    if route.HasField("cascade"):
        yield from _cascade(route.cascade)
    if route.small_model and route.small_model == route.model:
        yield Fault("small_model", f"{route.model!r} is the route's model itself")


def across(route: policy_pb2.Route, models: Mapping[str, registry_pb2.Model]) -> Iterator[Fault]:
    """What is wrong with a route in a mesh that has these models, beyond names that stand for nothing."""
    if route.alias in models:
        yield Fault("alias", f"{route.alias!r} is a model already")
    if route.model not in models:
        return
    own = tokenizer(models[route.model], models)
    for path, other in (("shadow.model", route.shadow.model), ("hedge.model", route.hedge.model)):
        if other in models and (its := tokenizer(models[other], models)) != own:
            text = f"{other!r} has another tokenizer ({its}) than {route.model!r} ({own})"
            yield Fault(path, f"{text}: a copy of a request is a copy of its tokens")


def breaker(breaker: policy_pb2.Breaker) -> Iterator[Fault]:
    """What is wrong with a breaker by itself."""
    yield from bounds.name(breaker.name)
    yield from bounds.share(breaker.error_share, "error_share", "the works")
    yield from bounds.at_most(breaker.min_works, "min_works", MOST_WORKS)
    yield from bounds.duration(breaker.window, breaker.HasField("window"), "window", MOST_WINDOW_S)
    yield from bounds.duration(breaker.open_for, breaker.HasField("open_for"), "open_for", MOST_OPEN_S)
    yield from bounds.at_most(breaker.probes, "probes", MOST_PROBES)


def tokenizer(model: registry_pb2.Model, models: Mapping[str, registry_pb2.Model]) -> str:
    """Where the tokenizer of a model is, as libs.catalogue.ModelSpec.tokenizer_source; an adapter has its base's."""
    base = models.get(model.base, model)
    return base.tokenizer or base.source


def _rules(rules: Collection[policy_pb2.RouteRule]) -> Iterator[Fault]:
    if len(rules) > MOST_RULES:
        yield Fault("rules", f"{len(rules)} rules: at most {MOST_RULES}")
    names: set[str] = set()
    for index, rule in enumerate(rules):
        path = f"rules[{index}]"
        yield from bounds.name(rule.name, f"{path}.name")
        if rule.name and rule.name in names:
            yield Fault(f"{path}.name", f"{rule.name!r} is the name of another rule already")
        names.add(rule.name)
        if not rule.model:
            yield Fault(f"{path}.model", "required")
        if not any(getattr(rule, each) for each in _CONDITIONS):
            said = (
                "it has no condition, so it would hold for every request: make it the route's `model`, or give it one"
            )
            yield Fault(path, f"{said} ({', '.join(_CONDITIONS)})")
        if 0 < rule.max_prompt_tokens < rule.min_prompt_tokens:
            said = (
                f"{rule.max_prompt_tokens} is less than min_prompt_tokens, {rule.min_prompt_tokens}: no prompt is both"
            )
            yield Fault(f"{path}.max_prompt_tokens", said)
        for key, value in sorted(rule.tags.items()):
            yield from _tag(key, f"{path}.tags")
            yield from bounds.text(value, f"{path}.tags.{key}", required=False, most=MOST_TAG_VALUE)
        for field, words in (("tenants", rule.tenants), ("intents", rule.intents), ("capabilities", rule.capabilities)):
            yield from bounds.once(words, f"{path}.{field}")
            for at, word in enumerate(words):
                yield from bounds.text(word, f"{path}.{field}[{at}]", required=False, most=64)


def _fallbacks(route: policy_pb2.Route) -> Iterator[Fault]:
    if len(route.fallbacks) > MOST_FALLBACKS:
        yield Fault("fallbacks", f"{len(route.fallbacks)} of them: at most {MOST_FALLBACKS}")
    seen: set[str] = set()
    ended = waited = False
    for index, fallback in enumerate(route.fallbacks):
        path, to = f"fallbacks[{index}]", fallback.WhichOneof("to")
        if ended:
            yield Fault(path, "nothing behind a `reject` is tried: remove it, or put it in front")
        if to is None or (to == "model" and not fallback.model):
            yield Fault(path, "exactly one of model, wait, reject is required")
        elif to == "model":
            if fallback.model == route.model:
                yield Fault(
                    f"{path}.model", f"{route.model!r} is the route's model itself: what could not answer is not tried"
                )
            elif fallback.model in seen:
                yield Fault(f"{path}.model", f"{bounds.shown(fallback.model)} is tried already")
            seen.add(fallback.model)
        elif to == "wait":
            yield from bounds.duration(fallback.wait, True, f"{path}.wait", MOST_WAIT_S)
            if waited:
                yield Fault(f"{path}.wait", "it waits already: make that wait longer")
            waited = True
        elif not fallback.reject:
            yield Fault(f"{path}.reject", "false does nothing: remove it")
        ended |= fallback.reject


def _canary(route: policy_pb2.Route) -> Iterator[Fault]:
    canary = route.canary
    if not canary.model:
        yield Fault("canary.model", "required")
    elif canary.model == route.model:
        yield Fault("canary.model", f"{route.model!r} is the route's model itself")
    yield from bounds.share(canary.share, "canary.share", "the requests")
    yield from bounds.once(canary.tenants, "canary.tenants")
    if canary.sticky_tag:
        yield from _tag(canary.sticky_tag, "canary.sticky_tag")


def _cascade(cascade: policy_pb2.Cascade) -> Iterator[Fault]:
    least, most = CASCADES
    if not least <= len(cascade.models) <= most:
        yield Fault("cascade.models", f"{len(cascade.models)} models: from {least} to {most}, the cheapest first")
    yield from bounds.once(cascade.models, "cascade.models")
    if not -100 <= cascade.min_mean_log_prob <= 0:
        said = "a mean log-probability, below 0 and at least -100; 0: not looked at"
        yield Fault("cascade.min_mean_log_prob", f"{cascade.min_mean_log_prob:g}: {said}")
    if not (cascade.min_mean_log_prob or cascade.check_schema or cascade.refusal_patterns):
        said = "no answer would ever be in doubt: set min_mean_log_prob, check_schema or refusal_patterns"
        yield Fault("cascade", said)
    if len(cascade.refusal_patterns) > patterns.MOST_PATTERNS:
        said = f"{len(cascade.refusal_patterns)} patterns: at most {patterns.MOST_PATTERNS}"
        yield Fault("cascade.refusal_patterns", said)
    for index, pattern in enumerate(cascade.refusal_patterns[: patterns.MOST_PATTERNS]):
        if said := patterns.fault(pattern):
            yield Fault(f"cascade.refusal_patterns[{index}]", said)


def _tag(key: str, path: str) -> Iterator[Fault]:
    if not bounds.TAG_KEY.fullmatch(key):
        yield Fault(path, f"{bounds.shown(key)} is not the key of a tag: 1 to 63 characters of a-z 0-9 _ . -")
