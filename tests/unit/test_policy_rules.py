"""The rules of policies: what each object must obey by itself, and among others. Every fault has a line here."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from headrace.policy.v1 import policy_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.policy import rules, switch_rules
from libs.policy.features import SWITCHED
from libs.policy.kinds import key_of

Fields = dict[str, Any]

HASH = "a" * 64
MODEL: Fields = {
    "name": "large", "source": "package:a", "memory_bytes": 10, "context_tokens": 64, "blocks": 4, "block_tokens": 32,
    "slots": 2, "step_tokens": 64, "adapter_memory_bytes": 9,
}  # fmt: skip
MODELS: tuple[Fields, ...] = (
    MODEL,
    {**MODEL, "name": "small", "tokenizer": "package:a", "source": "package:b"},
    {**MODEL, "name": "other", "source": "package:c"},
    {"name": "lora", "base": "large", "source": "/adapters/x", "memory_bytes": 5},
)
TENANT: Fields = {"name": "t", "key_sha256": [HASH]}
TIER: Fields = {
    "tier": "TIER_INTERACTIVE", "default_timeout": "60s", "max_timeout": "90s", "max_waiting": 1,
    "max_waiting_tokens": 2,
    "ladder": [
        {"name": "shorter", "at": 0.8, "clamp_output_tokens": 512},
        {"name": "short", "at": 0.9, "clamp_output_tokens": 128},
        {"name": "smaller", "at": 1, "smaller_model": True},
        {"name": "deaf", "at": 1.2, "tools_off": True},
        {"name": "plain", "at": 1.3, "no_extras": True},
        {"name": "later", "at": 1.5, "defer": True},
        {"name": "full", "at": 2, "reject": True},
    ],
    "recover_after": "20s",
}  # fmt: skip
ROUTE: Fields = {
    "alias": "chat", "model": "large", "small_model": "small",
    "rules": [
        {"name": "long", "model": "other", "min_prompt_tokens": 1000, "tags": {"team": "mill"}},
        {"name": "code", "model": "lora", "intents": ["code"], "capabilities": ["lang:de"], "tenants": ["t"]},
    ],
    "fallbacks": [{"model": "small"}, {"wait": "5s"}, {"model": "other"}, {"reject": True}],
    "canary": {"model": "other", "share": 0.1, "tenants": ["t"], "sticky_tag": "user"},
    "shadow": {"model": "small", "share": 1, "tenants": ["t"], "max_in_flight": 4},
    "hedge": {"quantile": 0.9, "max_share": 0.05, "model": "small"},
    "cascade": {
        "models": ["small", "large"], "min_mean_log_prob": -1.5, "check_schema": True,
        "refusal_patterns": ["I('m| am) (sorry|unable)"],
    },
}  # fmt: skip
BREAKER: Fields = {
    "name": "large", "error_share": 0.5, "min_works": 10, "window": "10s", "open_for": "5s", "probes": 3
}  # fmt: skip
TOOL: Fields = {
    "name": "depth", "description": "The depth of the river.", "arguments_schema": '{"type": "object"}',
    "url": "https://gauges:8443/depth?unit=m", "timeout": "2s", "idempotent": True,
}  # fmt: skip
GATE: Fields = {**TOOL, "name": "gate", "idempotent": False}
CONTRACT: Fields = {
    "name": "report", "output_schema": '{"$defs": {"a": {}}, "properties": {"x": {"$ref": "#/$defs/a"}}}',
    "repairs": 5, "tools": [{"tool": "depth", "timeout": "1s", "retries": 5}, {"tool": "gate", "needs_approval": True}],
    "max_steps": 4, "tenants": ["t"],
}  # fmt: skip
KEY_SET = '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "' + "A" * 43 + '"}]}'
ISSUER: Fields = {
    "name": "idp",
    "issuer": "https://idp",
    "audience": "headrace",
    "key_set": KEY_SET,
    "subject_claim": "sub",
}
SCHEDULING: Fields = {"name": "default"}
KINDS: dict[type[Message], Fields] = {
    pb.Tenant: {
        **TENANT, "weight": 2, "features": ["chat", "tools"], "models": ["large", "chat"], "requests_per_s": 0.5,
        "tokens_per_min": 1000, "model_limits": [{"model": "large", "max_output_tokens": 9}], "audit_days": 3650,
        "certificate_names": ["spiffe://mesh/ns/a/sa/b", "client.example"],
        "token_subjects": [{"issuer": "idp", "subject": "me"}],
    },
    pb.TierPolicy: TIER, pb.Route: ROUTE, pb.Breaker: BREAKER, pb.Tool: TOOL, pb.Contract: CONTRACT,
    pb.TokenIssuer: ISSUER, pb.Scheduling: SCHEDULING,
}  # fmt: skip


def made(kind: type[Message], fields: Fields) -> Message:
    return json_format.ParseDict(fields, kind())


def told(kind: type[Message], fields: Fields) -> list[str]:
    """What is wrong with an object, by itself and in a mesh that has one of everything."""
    world = [made(registry_pb2.Model, model) for model in MODELS]
    world += [made(each, given) for each, given in KINDS.items()]
    world += [made(pb.Tool, GATE), made(pb.Breaker, {"name": "default"})]
    message = made(kind, fields)
    found = [str(fault) for fault in rules.within(message)]
    objects = {key_of(each): each for each in world}
    assert [*rules.across(objects)] == []
    objects[key_of(message)] = message
    return found + [str(fault) for key, fault in rules.across(objects) if key == key_of(message)]


@pytest.mark.parametrize(("kind", "fields"), KINDS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_what_says_all_that_can_be_said_has_no_fault(kind: type[Message], fields: Fields) -> None:
    assert told(kind, fields) == []


def rung(**fields: Any) -> Fields:
    return {**TIER, "ladder": [{"name": "a", "at": 1, **fields}]}


def ladder(*rungs: Fields) -> Fields:
    return {**TIER, "ladder": [{"name": f"r{i}", "at": i + 1, **each} for i, each in enumerate(rungs)]}


def rule(**fields: Any) -> Fields:
    return {**ROUTE, "rules": [{"name": "a", "model": "other", "min_waiting": 1, **fields}]}


def fallbacks(*given: Fields) -> Fields:
    return {**ROUTE, "fallbacks": list(given)}


def of(part: str, **fields: Any) -> Fields:
    return {**ROUTE, part: {**ROUTE[part], **fields}}


SUBJECT = {"issuer": "idp", "subject": "me"}
TOO_MANY_RULES = [{"name": f"r{i}", "model": "other", "min_waiting": 1} for i in range(65)]
ONE_TOO_MANY = {**ROUTE, "fallbacks": [{"model": "small"}] * 9}

FAULTS: list[tuple[type[Message], Fields, str]] = [
    (pb.Tenant, {**TENANT, "name": "Ab"}, "name: 'Ab' is not a name: a-z"),
    (pb.Tenant, {"name": "t"}, "key_sha256: a tenant without a key cannot come in; `headrace keys new NAME` makes one"),
    (pb.Tenant, {**TENANT, "key_sha256": ["A" * 64]}, "key_sha256[0]: 'AAAAAAAAAAAA'… is not a SHA-256"),
    (pb.Tenant, {**TENANT, "weight": 0.0001}, "weight: 0.0001: a share against those of others"),
    (pb.Tenant, {**TENANT, "weight": "NaN"}, "weight: nan is not a finite number"),
    (pb.Tenant, {**TENANT, "default_tier": 7}, "default_tier: 7 is not a value of Tier"),
    (pb.Tenant, {**TENANT, "models": ["larg"]}, "models[0]: there is no 'larg'; did you mean 'large'?"),
    (pb.Tenant, {**TENANT, "models": ["large", "large"]}, "models[1]: 'large' is named twice"),
    (pb.Tenant, {**TENANT, "models": [""]}, "models[0]: empty"),
    (pb.Tenant, {**TENANT, "models": [f"m{i}" for i in range(1001)]}, "models: 1001 entries: at most 1000"),
    (pb.Tenant, {**TENANT, "features": ["tool"]}, "features[0]: 'tool' is not one of chat, grammar, log_probs, tools"),
    (pb.Tenant, {**TENANT, "features": ["tool"]}, "did you mean 'tools'?"),
    (pb.Tenant, {**TENANT, "features": ["chat", "chat"]}, "features[1]: 'chat' is named twice"),
    (pb.Tenant, {**TENANT, "features": ["hedging"]}, "features[0]: 'hedging' is not one of"),
    (pb.Tenant, {**TENANT, "requests_per_s": -1}, "requests_per_s: -1: a rate, more than 0"),
    (pb.Tenant, {**TENANT, "requests_per_s": "Infinity"}, "requests_per_s: inf is not a finite number"),
    (pb.Tenant, {**TENANT, "tokens_per_min": 2 * 10**12}, "tokens_per_min: 2000000000000: at most 1000000000000"),
    (pb.Tenant, {**TENANT, "model_limits": [{}]}, "model_limits[0].model: required"),
    (pb.Tenant, {**TENANT, "model_limits": [{"model": "large"}]}, "model_limits[0]: limits nothing"),
    (
        pb.Tenant,
        {**TENANT, "model_limits": [{"model": "large", "max_prompt_tokens": 1}] * 2},
        "model_limits[1].model: 'large' is named twice",
    ),
    (
        pb.Tenant,
        {**TENANT, "model_limits": [{"model": "chat", "max_prompt_tokens": 1}]},
        "model_limits[0].model: 'chat' is itself an alias, of 'large': name a model",
    ),
    (pb.Tenant, {**TENANT, "certificate_names": ["two words"]}, "certificate_names[0]: 'two words' is not the URI"),
    (pb.Tenant, {**TENANT, "certificate_names": ["*.example"]}, "certificate_names[0]: '*.example' is not the URI"),
    (pb.Tenant, {**TENANT, "certificate_names": ['spiffe://a";URI=b']}, "is not the URI (spiffe://…) or DNS name"),
    (pb.Tenant, {**TENANT, "certificate_names": ["a", "a"]}, "certificate_names[1]: 'a' is named twice"),
    (pb.Tenant, {**TENANT, "token_subjects": [{"subject": "x"}]}, "token_subjects[0].issuer: required: the name of"),
    (pb.Tenant, {**TENANT, "token_subjects": [{"issuer": "idp"}]}, "token_subjects[0].subject: required"),
    (
        pb.Tenant,
        {**TENANT, "token_subjects": [{**SUBJECT, "subject": "x" * 256}]},
        "token_subjects[0].subject: 256 characters: at most 255",
    ),
    (
        pb.Tenant,
        {**TENANT, "token_subjects": [{**SUBJECT, "issuer": "ipd"}]},
        "token_subjects[0].issuer: there is no 'ipd'; did you mean 'idp'?",
    ),
    (pb.Tenant, {**TENANT, "prompt_storage": 9}, "prompt_storage: 9 is not a value of PromptStorage"),
    (pb.Tenant, {**TENANT, "audit_days": 3651}, "audit_days: 3651: at most 3650"),
    (pb.Tenant, {**TENANT, "name": "u"}, "key_sha256[0]: 't' has the key aaaaaaaa… too"),
    (
        pb.Tenant,
        {"name": "u", "certificate_names": ["client.example"]},
        "certificate_names[0]: 't' has the certificate name 'client.example' too",
    ),
    (pb.Tenant, {"name": "u", "token_subjects": [SUBJECT]}, "token_subjects[0]: 't' has the subject 'me' too"),
    (pb.TierPolicy, {**TIER, "tier": 0}, "tier: required"),
    (pb.TierPolicy, {**TIER, "default_timeout": "0s"}, "default_timeout: must be more than 0s"),
    (pb.TierPolicy, {**TIER, "default_timeout": "-5s"}, "default_timeout: not a duration"),
    (pb.TierPolicy, {**TIER, "max_timeout": "10s"}, "max_timeout: must not be less than default_timeout"),
    (pb.TierPolicy, {**TIER, "max_timeout": "2592001s"}, "max_timeout: 2.592e+06s: at most 2.592e+06s"),
    (pb.TierPolicy, {**TIER, "max_waiting": 0}, "max_waiting: must be more than 0"),
    (pb.TierPolicy, {**TIER, "target_first_token": "0s"}, "target_first_token: 0s: more than 0s, at most 3600s"),
    (pb.TierPolicy, {**TIER, "target_stretch": 0.5}, "target_stretch: 0.5: a multiple"),
    (pb.TierPolicy, {**TIER, "age": "9s"}, "age: interactive work is as urgent as work can be"),
    (pb.TierPolicy, {**TIER, "tier": "TIER_ASYNC", "ladder": [], "age": "86401s"}, "age: 86401s: more than 0s"),
    (pb.TierPolicy, {**TIER, "recover_after": "0s"}, "recover_after: 0s: more than 0s, at most 3600s"),
    (pb.TierPolicy, {**TIER, "recover_after": "3601s"}, "recover_after: 3601s: more than 0s, at most 3600s"),
    (pb.TierPolicy, rung(name="", reject=True), "ladder[0].name: required"),
    (pb.TierPolicy, rung(name="Two words", reject=True), "ladder[0].name: 'Two words' is not a name"),
    (
        pb.TierPolicy,
        rung(),
        "ladder[0]: exactly one of clamp_output_tokens, smaller_model, tools_off, no_extras, defer",
    ),
    (pb.TierPolicy, rung(reject=False), "ladder[0].reject: false does nothing: leave the rung out"),
    (pb.TierPolicy, rung(clamp_output_tokens=0), "ladder[0].clamp_output_tokens: 0: at least 1"),
    (pb.TierPolicy, rung(at=0, reject=True), "ladder[0].at: 0: a saturation, more than 0 and at most 100"),
    (pb.TierPolicy, rung(at=-1, reject=True), "ladder[0].at: -1: a saturation"),
    (pb.TierPolicy, rung(at="NaN", reject=True), "ladder[0].at: nan is not a finite number"),
    (pb.TierPolicy, {**rung(defer=True), "tier": "TIER_ASYNC"}, "ladder[0].defer: async work is deferred already"),
    (pb.TierPolicy, ladder({"reject": True}, {"defer": True}), "ladder[0].reject: nothing is left to give up behind"),
    (pb.TierPolicy, ladder({"defer": True}, {"defer": True}), "ladder[1].defer: the rung 'r0' does this already"),
    (pb.TierPolicy, ladder({"defer": True}, {"name": "r0", "reject": True}), "ladder[1].name: 'r0' is the name of"),
    (pb.TierPolicy, ladder({"defer": True}, {"at": 1, "reject": True}), "ladder[1].at: 1 is not more than 1"),
    (
        pb.TierPolicy,
        ladder({"clamp_output_tokens": 9}, {"clamp_output_tokens": 9}),
        "ladder[1].clamp_output_tokens: 9 is not less than the 9 of a rung before",
    ),
    (pb.TierPolicy, ladder(*[{"clamp_output_tokens": 99 - i} for i in range(17)]), "ladder: 17 rungs: at most 16"),
    (pb.Route, {**ROUTE, "alias": "Chat"}, "alias: 'Chat' is not a name"),
    (pb.Route, {**ROUTE, "alias": "large"}, "alias: 'large' is a model already"),
    (pb.Route, {**ROUTE, "model": ""}, "model: required"),
    (pb.Route, {**ROUTE, "model": "larg"}, "model: there is no 'larg'; did you mean 'large'?"),
    (
        pb.Route,
        {**ROUTE, "alias": "talk", "model": "chat"},
        "model: 'chat' is itself an alias, of 'large': name a model",
    ),
    (pb.Route, {**ROUTE, "small_model": "large"}, "small_model: 'large' is the route's model itself"),
    (pb.Route, {**ROUTE, "small_model": "tiny"}, "small_model: there is no 'tiny'"),
    (pb.Route, {**ROUTE, "rules": TOO_MANY_RULES}, "rules: 65 rules: at most 64"),
    (pb.Route, rule(name=""), "rules[0].name: required"),
    (
        pb.Route,
        {**ROUTE, "rules": [*ROUTE["rules"], ROUTE["rules"][0]]},
        "rules[2].name: 'long' is the name of another",
    ),
    (pb.Route, rule(model=""), "rules[0].model: required"),
    (pb.Route, rule(model="othr"), "rules[0].model: there is no 'othr'; did you mean 'other'?"),
    (pb.Route, rule(min_waiting=0), "rules[0]: it has no condition, so it would hold for every request"),
    (pb.Route, rule(min_prompt_tokens=9, max_prompt_tokens=8), "rules[0].max_prompt_tokens: 8 is less than min_prompt"),
    (pb.Route, rule(tenants=["tt"]), "rules[0].tenants[0]: there is no 'tt'"),
    (pb.Route, rule(tags={"Team": "x"}), "rules[0].tags: 'Team' is not the key of a tag"),
    (pb.Route, rule(tags={"team": "x" * 257}), "rules[0].tags.team: 257 characters: at most 256"),
    (pb.Route, rule(intents=["a", "a"]), "rules[0].intents[1]: 'a' is named twice"),
    (pb.Route, rule(capabilities=["x" * 65]), "rules[0].capabilities[0]: 65 characters: at most 64"),
    (pb.Route, rule(tier=5), "rules[0].tier: 5 is not a value of Tier"),
    (pb.Route, fallbacks({}), "fallbacks[0]: exactly one of model, wait, reject is required"),
    (pb.Route, fallbacks({"model": ""}), "fallbacks[0]: exactly one of model, wait, reject is required"),
    (pb.Route, fallbacks({"model": "large"}), "fallbacks[0].model: 'large' is the route's model itself"),
    (pb.Route, fallbacks({"model": "small"}, {"model": "small"}), "fallbacks[1].model: 'small' is tried already"),
    (pb.Route, fallbacks({"model": "smal"}), "fallbacks[0].model: there is no 'smal'; did you mean 'small'?"),
    (pb.Route, fallbacks({"wait": "0s"}), "fallbacks[0].wait: 0s: more than 0s, at most 600s"),
    (pb.Route, fallbacks({"wait": "1s"}, {"wait": "2s"}), "fallbacks[1].wait: it waits already"),
    (pb.Route, fallbacks({"reject": False}), "fallbacks[0].reject: false does nothing"),
    (pb.Route, fallbacks({"reject": True}, {"model": "small"}), "fallbacks[1]: nothing behind a `reject` is tried"),
    (pb.Route, ONE_TOO_MANY, "fallbacks: 9 of them: at most 8"),
    (pb.Route, of("canary", model=""), "canary.model: required"),
    (pb.Route, of("canary", model="large"), "canary.model: 'large' is the route's model itself"),
    (pb.Route, of("canary", share=1.1), "canary.share: 1.1: a share of the requests, from 0 to 1"),
    (pb.Route, of("canary", share=-0.1), "canary.share: -0.1: a share of the requests, from 0 to 1"),
    (pb.Route, of("canary", tenants=["tee"]), "canary.tenants[0]: there is no 'tee'"),
    (pb.Route, of("canary", sticky_tag="A B"), "canary.sticky_tag: 'A B' is not the key of a tag"),
    (pb.Route, of("shadow", model=""), "shadow.model: required"),
    (pb.Route, of("shadow", share=2), "shadow.share: 2: a share of the requests, from 0 to 1"),
    (pb.Route, of("shadow", tenants=["tee"]), "shadow.tenants[0]: there is no 'tee'"),
    (pb.Route, of("shadow", max_in_flight=1001), "shadow.max_in_flight: 1001: at most 1000"),
    (pb.Route, of("shadow", model="other"), "shadow.model: 'other' has another tokenizer (package:c) than 'large'"),
    (pb.Route, of("hedge", quantile=1), "hedge.quantile: 1: a quantile of times to the first token"),
    (pb.Route, of("hedge", max_share=-1), "hedge.max_share: -1: a share of the requests, from 0 to 1"),
    (
        pb.Route,
        of("hedge", model="other"),
        "hedge.model: 'other' has another tokenizer (package:c) than 'large' (package",
    ),
    (pb.Route, of("cascade", models=["small"]), "cascade.models: 1 models: from 2 to 4, the cheapest first"),
    (
        pb.Route,
        of("cascade", models=["small", "lora", "other", "large", "small"]),
        "cascade.models: 5 models: from 2 to 4",
    ),
    (pb.Route, of("cascade", models=["small", "small"]), "cascade.models[1]: 'small' is named twice"),
    (pb.Route, of("cascade", models=["small", "larg"]), "cascade.models[1]: there is no 'larg'; did you mean 'large'?"),
    (pb.Route, of("cascade", min_mean_log_prob=1), "cascade.min_mean_log_prob: 1: a mean log-probability, below 0"),
    (pb.Route, {**ROUTE, "cascade": {"models": ["small", "large"]}}, "cascade: no answer would ever be in doubt"),
    (pb.Route, of("cascade", refusal_patterns=["("]), "cascade.refusal_patterns[0]: not a regular expression: missing"),
    (pb.Route, of("cascade", refusal_patterns=["(a+)+b"]), "cascade.refusal_patterns[0]: a repetition without bound"),
    (pb.Route, of("cascade", refusal_patterns=["x"] * 17), "cascade.refusal_patterns: 17 patterns: at most 16"),
    (pb.Breaker, {**BREAKER, "name": "larg"}, "name: there is no model 'larg'; did you mean 'large'?"),
    (pb.Breaker, {**BREAKER, "name": "lora"}, "name: 'lora' is an adapter and runs as its base does: name 'large'"),
    (pb.Breaker, {**BREAKER, "error_share": 1.5}, "error_share: 1.5: a share of the works, from 0 to 1"),
    (pb.Breaker, {**BREAKER, "min_works": 10_001}, "min_works: 10001: at most 10000"),
    (pb.Breaker, {**BREAKER, "window": "601s"}, "window: 601s: more than 0s, at most 600s"),
    (pb.Breaker, {**BREAKER, "open_for": "0s"}, "open_for: 0s: more than 0s, at most 3600s"),
    (pb.Breaker, {**BREAKER, "probes": 101}, "probes: 101: at most 100"),
    (pb.Scheduling, {"name": "larg"}, "name: there is no model 'larg'; did you mean 'large'?"),
    (pb.Scheduling, {"name": "default", "dispatch": 99}, "dispatch: 99 is not a value of DispatchPolicy"),
    (pb.Scheduling, {"name": "default", "overcommit": "NaN"}, "overcommit: nan is not a finite number"),
    (pb.Contract, {**CONTRACT, "name": "My"}, "name: 'My' is not a name"),
    (pb.Contract, {**CONTRACT, "output_schema": "{"}, "output_schema: not JSON"),
    (
        pb.Contract,
        {**CONTRACT, "output_schema": '{"type": 7}'},
        "output_schema: not a JSON schema: at '/type': 7 is not",
    ),
    (pb.Contract, {**CONTRACT, "output_schema": "[" * 50_000}, "output_schema: n"),
    (pb.Contract, {**CONTRACT, "output_schema": " " * 65_537 + "{}"}, "output_schema: 65539 characters: at most 65536"),
    (
        pb.Contract,
        {**CONTRACT, "output_schema": '{"items": {"$ref": "https://elsewhere/schema"}}'},
        "output_schema: 'https://elsewhere/schema' lies elsewhere",
    ),
    (pb.Contract, {**CONTRACT, "output_schema": ""}, "repairs: 5, but without output_schema no answer is ever wrong"),
    (pb.Contract, {**CONTRACT, "repairs": 6}, "repairs: 6: at most 5"),
    (pb.Contract, {**CONTRACT, "tools": [{}]}, "tools[0].tool: required"),
    (
        pb.Contract,
        {**CONTRACT, "tools": [{"tool": "dept"}]},
        "tools[0].tool: there is no 'dept'; did you mean 'depth'?",
    ),
    (pb.Contract, {**CONTRACT, "tools": [{"tool": "gate"}] * 2}, "tools[1].tool: 'gate' is named twice"),
    (pb.Contract, {**CONTRACT, "tools": [{"tool": "depth", "retries": 6}]}, "tools[0].retries: 6: at most 5"),
    (
        pb.Contract,
        {**CONTRACT, "tools": [{"tool": "gate", "retries": 1}]},
        "tools[0].retries: 1, but 'gate' is not idempotent",
    ),
    (
        pb.Contract,
        {**CONTRACT, "tools": [{"tool": "depth", "timeout": "601s"}]},
        "tools[0].timeout: 601s: more than 0s",
    ),
    (pb.Contract, {**CONTRACT, "tools": [{"tool": f"t{i}"} for i in range(65)]}, "tools: 65 tools: at most 64"),
    (pb.Contract, {**CONTRACT, "max_steps": 101}, "max_steps: 101: at most 100"),
    (pb.Contract, {**CONTRACT, "tenants": ["tee"]}, "tenants[0]: there is no 'tee'"),
    (pb.Contract, {**CONTRACT, "prompt_storage": 4}, "prompt_storage: 4 is not a value of PromptStorage"),
    (pb.Tool, {**TOOL, "name": "X"}, "name: 'X' is not a name"),
    (pb.Tool, {**TOOL, "description": " "}, "description: required"),
    (pb.Tool, {**TOOL, "description": "a\0b"}, "description: it has control characters"),
    (pb.Tool, {**TOOL, "description": "x" * 4097}, "description: 4097 characters: at most 4096"),
    (pb.Tool, {**TOOL, "arguments_schema": ""}, "arguments_schema: required"),
    (
        pb.Tool,
        {**TOOL, "arguments_schema": '{"type": "array"}'},
        "arguments_schema: the arguments of a tool are an object",
    ),
    (pb.Tool, {**TOOL, "arguments_schema": "true"}, "arguments_schema: the arguments of a tool are an object"),
    (pb.Tool, {**TOOL, "url": ""}, "url: required"),
    (pb.Tool, {**TOOL, "url": "ftp://host/x"}, "url: 'ftp://host/x' is not of the form http://host/path"),
    (pb.Tool, {**TOOL, "url": "https://"}, "url: 'https://' is not of the form"),
    (pb.Tool, {**TOOL, "url": "https://host:99999/"}, "is not of the form"),
    (pb.Tool, {**TOOL, "url": "https://me:secret@host/x"}, "url: a password must not lie in etcd"),
    (pb.Tool, {**TOOL, "url": "https://host/x#y"}, "url: a call has nothing behind '#'"),
    (pb.Tool, {**TOOL, "timeout": "601s"}, "timeout: 601s: more than 0s, at most 600s"),
    (pb.TokenIssuer, {**ISSUER, "name": "Idp"}, "name: 'Idp' is not a name"),
    (pb.TokenIssuer, {**ISSUER, "issuer": ""}, "issuer: required"),
    (pb.TokenIssuer, {**ISSUER, "name": "two"}, "issuer: 'idp' is the issuer 'https://idp' already"),
    (pb.TokenIssuer, {**ISSUER, "audience": ""}, "audience: required"),
    (pb.TokenIssuer, {**ISSUER, "subject_claim": "a b"}, "subject_claim: 'a b' is not the name of a claim"),
    (pb.TokenIssuer, {**ISSUER, "key_set": ""}, "key_set: required"),
    (pb.TokenIssuer, {**ISSUER, "key_set": "{}"}, "key_set: not a key set"),
]


@pytest.mark.parametrize(("kind", "fields", "fault"), FAULTS)
def test_every_fault_is_told(kind: type[Message], fields: Fields, fault: str) -> None:
    found = told(kind, fields)
    assert any(fault in each for each in found), found


def test_all_faults_come_at_once_and_each_once() -> None:
    wrong = {**TENANT, "weight": "NaN", "features": ["tool"], "requests_per_s": -1, "audit_days": 9999, "models": ["x"]}
    paths = [each.split(":")[0] for each in told(pb.Tenant, wrong)]
    assert sorted(paths) == ["audit_days", "features[0]", "models[0]", "requests_per_s", "weight"]


def test_a_tenant_may_come_in_without_a_key() -> None:
    assert told(pb.Tenant, {"name": "u", "certificate_names": ["spiffe://mesh/u"]}) == []
    assert told(pb.Tenant, {"name": "u", "token_subjects": [{"issuer": "idp", "subject": "u"}]}) == []


def test_an_object_without_end_is_refused() -> None:
    found = told(pb.Tenant, {**TENANT, "certificate_names": [f"spiffe://{i}/{'x' * 1000}" for i in range(300)]})
    assert found[0].startswith(": ")
    assert "at most 262144" in found[0]


def test_all_objects_of_a_kind_together_have_an_end() -> None:
    schema = '{"description": "' + "x" * 60_000 + '"}'
    contracts = [pb.Contract(name=f"c{i}", output_schema=schema) for i in range(18)]
    assert [*rules.across({key_of(each): each for each in contracts[:17]})] == []
    [(key, fault)] = rules.across({key_of(each): each for each in contracts})
    assert key == "/headrace/v1/policies/contracts/c17", "the largest"
    assert "at most 1048576" in fault.text


def test_a_rung_without_small_models_is_remarked() -> None:
    tier, route = made(pb.TierPolicy, TIER), made(pb.Route, ROUTE)
    plain = made(pb.Route, {"alias": "chat", "model": "large"})
    assert [*rules.warnings({key_of(tier): tier, key_of(route): route})] == []
    [(key, remark)] = rules.warnings({key_of(tier): tier, key_of(plain): plain})
    assert key == "/headrace/v1/policies/tiers/interactive"
    assert str(remark) == "ladder[2].smaller_model: no route has a small_model, so this rung does nothing"


@pytest.mark.parametrize(
    ("fields", "faults"),
    [
        ({"kind": "SWITCH_KIND_MODEL", "name": "large", "reason": "x"}, []),
        ({"kind": "SWITCH_KIND_TOOL", "name": "gate", "reason": "x"}, []),
        *(({"kind": "SWITCH_KIND_FEATURE", "name": each, "reason": "x"}, []) for each in SWITCHED),
        ({"name": "x", "reason": "x"}, ["kind: is required: one of SWITCH_KIND_MODEL, SWITCH_KIND_TENANT"]),
        ({"kind": 9, "name": "x", "reason": "x"}, ["kind: is required: one of"]),
        ({"kind": "SWITCH_KIND_TENANT", "reason": " "}, ["name: required", "reason: is required: it is told"]),
        ({"kind": "SWITCH_KIND_TENANT", "name": "a/b", "reason": "x" * 501}, ["name: 'a/b' is not", "reason: 501"]),
        ({"kind": "SWITCH_KIND_FEATURE", "name": "hedgin", "reason": "x"}, ["name: 'hedgin' is not one of chat, "]),
    ],
)  # fmt: skip
def test_a_switch_names_what_can_be_off(fields: Fields, faults: list[str]) -> None:
    found = [str(fault) for fault in switch_rules.entry(json_format.ParseDict(fields, pb.Switch()))]
    assert len(found) == len(faults)
    assert all(said.startswith(expected) for said, expected in zip(found, faults, strict=True)), found
