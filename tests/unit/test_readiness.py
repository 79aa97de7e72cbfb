"""The go/no-go list: each line is no-go for its own reason, and unknown without facts."""

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format

from headrace.inference.v1 import inference_pb2
from headrace.lane.v1 import lane_pb2
from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from services.console.drill.values import VERSION, Check, Order, Result, Rung, RungFound, Second, Verdict
from services.console.readiness import overload, routes, running, tenants
from services.console.readiness.checks import CHECKS, judge
from services.console.readiness.facts import Facts, Page, Rules

NOW = 1_700_000_000.0
TIER = {
    "default_timeout": "60s", "max_timeout": "600s", "target_first_token": "2s", "max_waiting": 10,
    "max_waiting_tokens": 1000, "ladder": [{"name": "short", "at": 0.7, "clamp_output_tokens": 50},
                                           {"name": "small", "at": 1.0, "smaller_model": True}],
}  # fmt: skip
OBJECTS: list[dict[str, Any]] = [
    {"tier": {"tier": "TIER_INTERACTIVE", **TIER}},
    {"tier": {"tier": "TIER_ASYNC", **TIER}},
    {"tenant": {"name": "boss", "operator": True}},
    {"tenant": {"name": "shop", "protected": True, "requests_per_s": 5}},
    {"route": {"alias": "chat", "model": "big", "small_model": "small", "fallbacks": [{"model": "small"}]}},
]
RUNGS = [Rung("short", 0.7, "clamp_output_tokens", 50), Rung("small", 1.0, "smaller_model")]


def rules(*more: dict[str, Any], without: str = "") -> Rules:
    """The good rules and more, without those of a kind."""
    objects = [each for each in OBJECTS if without not in each] + list(more)
    return Rules.of([json_format.ParseDict(each, pb.PolicyObject()) for each in objects])


def drill(tier: str, **changes: Any) -> Result:
    order = Order("chat", "big", "small", tier, RUNGS, 15.0)
    found = [RungFound(rung, 1.0, 1.0, 1.0, Check(rung.name, Verdict.GO, "seen")) for rung in RUNGS]
    good = Result(
        VERSION, NOW - 86_400, 60.0, "headrace drill", order, "every rung was reached", False, found,
        [Check("all", Verdict.GO, "")], 10, 10, 0, 0, [], [Second(0.0, answered=9)],
    )  # fmt: skip
    return replace(good, **changes)


def status(model: str, ready: int = 2, wanted: int = 2) -> pb.ModelStatus:
    return pb.ModelStatus(model=model, ready=ready, wanted=wanted)


ALL = frozenset(metric.name.removesuffix("_total") for each in running.REQUIRED.values() for metric in each)
PAGES = {"router-1": Page("router", ALL, True), "batcher-1": Page("batcher", ALL, True)}
GOOD = Facts(
    now=NOW,
    rules=rules(),
    models=[],
    statuses=[status("big"), status("small")],
    services=[
        registry_pb2.ServiceInstance(service=service, instance=f"{service}-{number}")
        for service in running.STAGES
        for number in (1, 2)
    ],
    executors=[],
    switches=[],
    usages=[pb.TenantUsage(tenant="shop", requests_per_s=1.5)],
    ladders=[pb.LadderState(model="big", tier=inference_pb2.TIER_ASYNC)],
    breakers=[lane_pb2.BreakerState(pool="big@1", position=lane_pb2.BREAKER_POSITION_CLOSED)],
    audited=True,
    pages=PAGES,
    drills={"interactive": drill("interactive"), "async": drill("async")},
)


def test_a_mesh_that_is_ready_is_go_in_every_line() -> None:
    lines = judge(GOOD)
    assert [line for line in lines if line.verdict is not Verdict.GO] == []
    assert len(lines) == len(CHECKS) == len({line.what for line in lines})
    assert all(line.evidence for line in lines)


def test_what_is_not_known_is_neither_go_nor_no_go() -> None:
    lines = judge(Facts(now=NOW, faults={"rules": "etcd does not answer"}))
    known = {line.what: line for line in lines if line.verdict is not Verdict.UNKNOWN}
    assert list(known) == [overload.load_tested(GOOD).what], "that is told from files"
    assert overload.tiers(Facts(NOW, faults={"rules": "etcd does not answer"})).evidence == "etcd does not answer"


LADDERLESS = {"tier": {"tier": "TIER_ASYNC", "default_timeout": "1s", "target_first_token": "1s"}}
UP = pb.LadderState(model="big", tier=inference_pb2.TIER_INTERACTIVE, level=1, rungs=["short"])
OPEN = lane_pb2.BreakerState(pool="big@1", instance="router-1", position=lane_pb2.BREAKER_POSITION_OPEN)
SWITCH = policy_pb2.Switch(kind=policy_pb2.SWITCH_KIND_MODEL, name="big", reason="it lies")
BAD = Check("x", Verdict.NO_GO, "")


@pytest.mark.parametrize(
    ("check", "facts", "said"),
    [
        (overload.tiers, {"rules": rules(without="tier")}, "async"),
        (overload.ladders, {"rules": rules(LADDERLESS)}, "async has no ladder"),
        (overload.calm, {"ladders": [UP]}, "big (interactive): short"),
        (overload.queues, {"rules": rules(LADDERLESS)}, "async"),
        (overload.drilled, {"drills": {"async": drill("async")}}, "no drill of interactive"),
        (overload.drilled, {"drills": {"async": drill("async", began=NOW - 40 * 86_400)}}, "40 days old"),
        (overload.drilled, {"drills": {"async": drill("async", checks=[BAD])}}, "left open: x"),
        (
            overload.drilled,
            {"drills": {"async": drill("async", order=replace(drill("async").order, ladder=RUNGS[:1]))}},
            "another one since",
        ),
        (overload.load_tested, {"drills": {}}, "no drill"),
        (tenants.protected, {"rules": rules(without="tenant")}, "none of 0"),
        (tenants.protected, {"rules": rules({"tenant": {"name": "a", "protected": True}}, without="tenant")}, "every"),
        (tenants.limits, {"rules": rules({"tenant": {"name": "flood"}})}, "flood"),
        (tenants.limits, {"rules": rules(without="tenant")}, "only operators"),
        (tenants.no_public_keys, {"rules": rules({"tenant": {"name": "dev"}})}, "dev"),
        (routes.routing, {"rules": rules(without="route")}, "no routes"),
        (routes.routing, {"statuses": [status("big", 0)]}, "chat → big"),
        (routes.fallbacks, {"rules": rules({"route": {"alias": "lone", "model": "big"}})}, "lone has none"),
        (routes.fallbacks, {"statuses": [status("big"), status("small", 0)]}, "chat (small)"),
        (routes.fallbacks, {"rules": rules(without="route")}, "no routes"),
        (routes.small_models, {"rules": rules({"route": {"alias": "lone", "model": "big"}})}, "lone"),
        (routes.breakers, {"breakers": [OPEN]}, "big@1 in router-1"),
        (running.switches, {"switches": [SWITCH]}, "model big (it lies)"),
        (running.switches, {"pages": {"router-1": Page("router", ALL, False)}}, "router-1"),
        (running.metrics, {"pages": {"batcher-1": Page("batcher", frozenset(), True)}}, "batcher-1: headrace_"),
        (running.metrics, {"faults": {"metrics of router-1": "refused"}}, "metrics of router-1"),
        (running.redundancy, {"services": []}, "admission, router, batcher"),
        (running.copies, {"statuses": [status("big", 1, 3)]}, "big (1 of 3)"),
        (running.copies, {"statuses": [status("big", 1, 1)]}, "one copy alone: big"),
        (running.copies, {"statuses": []}, "empty"),
    ],
)
def test_a_line_is_no_go_and_says_why_and_what_to_do(check: Any, facts: dict[str, Any], said: str) -> None:
    line = check(replace(GOOD, **facts))
    assert line.verdict is Verdict.NO_GO
    assert said in line.evidence
    assert line.advice


def test_a_drill_at_another_scale_is_one_of_the_same_ladder() -> None:
    scaled = [replace(rung, at=rung.at * 0.1) for rung in RUNGS]
    order = replace(drill("async").order, ladder=scaled, scale=0.1)
    facts = replace(GOOD, drills={**GOOD.drills, "async": drill("async", order=order)})
    assert overload.drilled(facts).verdict is Verdict.GO


def test_a_route_that_only_waits_has_a_fallback() -> None:
    waits = {"route": {"alias": "chat", "model": "big", "fallbacks": [{"wait": "5s"}]}}
    assert routes.fallbacks(replace(GOOD, rules=rules(waits, without="route"))).verdict is Verdict.GO
