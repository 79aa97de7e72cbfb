"""Operators' rules as etcd has them, as values: what is unset gets its default."""

import pytest
from google.protobuf.duration_pb2 import Duration

from headrace.policy.v1 import policy_pb2
from libs.catalogue import ModelSpec
from libs.lane.work import Tier
from libs.tokens.blocks import chain, salt
from services.batcher.queue import Limits
from services.batcher.rule_source import pinned, scheduling_rules, tier_rules
from services.batcher.rules import STRETCH, TARGET_S, TierRules
from services.batcher.scheduling import Dispatch, Reserve, SchedulingRules


@pytest.mark.parametrize("tier", list(Tier))
def test_a_tier_without_rules_has_its_defaults(tier: Tier) -> None:
    assert tier_rules(tier, policy_pb2.TierPolicy()) == TierRules(Limits(), TARGET_S[tier], STRETCH)


def test_the_rules_of_a_tier() -> None:
    message = policy_pb2.TierPolicy(
        max_waiting=7, max_waiting_tokens=900, age=Duration(seconds=5), target_stretch=3.0,
        target_first_token=Duration(nanos=250_000_000),
    )  # fmt: skip
    assert tier_rules(Tier.ASYNC, message) == TierRules(Limits(7, 900, 5.0), 0.25, 3.0)


def test_a_model_without_rules_has_the_defaults() -> None:
    assert scheduling_rules(policy_pb2.Scheduling()) == SchedulingRules()


def test_the_rules_of_a_model() -> None:
    message = policy_pb2.Scheduling(
        name="m", dispatch=policy_pb2.DISPATCH_POLICY_POWER_OF_TWO, reserve=policy_pb2.RESERVE_POLICY_ESTIMATE,
        overcommit=1.5, quantile=0.5, prefill_ahead_s=0.2, max_hold_s=0.3, max_pushes=4, headroom=0.2, warm_prefixes=3,
        cold_start=True,
    )  # fmt: skip
    assert scheduling_rules(message) == SchedulingRules(
        Dispatch.POWER_OF_TWO, Reserve.ESTIMATE, 1.5, 0.5, 0.2, 0.3, 4, 0.2, 3, True
    )


@pytest.mark.parametrize("dispatch", list(Dispatch))
def test_the_numbers_are_those_of_the_protocol(dispatch: Dispatch) -> None:
    assert policy_pb2.DispatchPolicy.Name(int(dispatch)) == f"DISPATCH_POLICY_{dispatch.name}"  # type: ignore[arg-type]


def test_what_a_newer_console_writes_does_not_stop_an_older_batcher() -> None:
    message = policy_pb2.Scheduling()
    message.ParseFromString(policy_pb2.Scheduling(max_pushes=1).SerializeToString() + bytes([0x10, 99, 0x18, 98]))
    assert (message.dispatch, message.reserve) == (99, 98)
    assert scheduling_rules(message) == SchedulingRules(max_pushes=1)


def test_a_pin_has_the_hashes_that_works_have() -> None:
    spec = ModelSpec("m", "simulated:", block_tokens=4, blocks=10, slots=1, context_tokens=100, step_tokens=16)
    pin = policy_pb2.Pin(name="p", model="m", token_ids=list(range(11)), copies=2)
    made = pinned("p", pin, spec)
    assert made.copies == 2
    assert made.prefix.tokens == tuple(range(8)), "whole blocks only"
    assert list(made.prefix.hashes) == list(chain(range(8), 4, salt("m", spec.salt)))
    assert (made.prefix.model, made.prefix.adapter, made.prefix.salt) == ("m", "", spec.salt)


def test_the_pin_of_an_isolated_tenant_is_in_its_cache_alone() -> None:
    spec = ModelSpec("m", "simulated:", block_tokens=4, blocks=10, slots=1, context_tokens=100, step_tokens=16)
    shared, own = (
        pinned("p", policy_pb2.Pin(model="m", tenant=tenant, token_ids=range(8)), spec) for tenant in ("", "acme")
    )
    assert shared.prefix.hashes != own.prefix.hashes
    assert own.prefix.salt != shared.prefix.salt
