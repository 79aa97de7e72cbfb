"""What a pinned prefix must obey, alone and among others."""

import pytest

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import pin_rules

MODELS = {
    "a": registry_pb2.Model(name="a", source="package:a", block_tokens=16, context_tokens=64),
    "x": registry_pb2.Model(name="x", base="a"),
    "far": registry_pb2.Model(name="far", source="remote:", block_tokens=16, context_tokens=64),
}
TENANTS = {
    "shut": policy_pb2.Tenant(name="shut", isolated=True, models=["x"]),
    "open": policy_pb2.Tenant(name="open"),
}


def pin(tokens: int, name: str = "p", model: str = "a", tenant: str = "") -> policy_pb2.Pin:
    return policy_pb2.Pin(name=name, model=model, tenant=tenant, token_ids=range(tokens))


@pytest.mark.parametrize(
    ("one", "paths"),
    [
        (pin(16), []),
        (pin(63, model="x", tenant="shut"), []),
        (pin(15), ["token_ids"]),
        (pin(64), ["token_ids"]),
        (pin(16, model="far"), ["model"]),
        (pin(16, model="b"), ["model"]),
        (pin(16, tenant="open"), ["tenant"]),
        (pin(16, tenant="shut"), ["tenant"]),
        (pin(16, tenant="nobody"), ["tenant"]),
        (pin(15, model="x", tenant="open"), ["token_ids", "tenant"]),
    ],
)
def test_a_pin_fits_into_its_mesh(one: policy_pb2.Pin, paths: list[str]) -> None:
    assert [fault.path for fault in pin_rules.across(one, MODELS, TENANTS)] == paths


def test_all_pins_together_can_be_read_at_once() -> None:
    many = {str(number): pin(1, str(number)) for number in range(pin_rules.MOST_PINS)}
    assert list(pin_rules.in_all(many)) == []
    [(key, fault)] = pin_rules.in_all({**many, "last": pin(1, "last")})
    assert (key, fault.path) == ("last", "name")
    most = pin_rules.MOST_TOKENS_IN_ALL // pin_rules.MOST_TOKENS
    long = {str(number): pin(pin_rules.MOST_TOKENS, str(number)) for number in range(most)}
    assert list(pin_rules.in_all(long)) == []
    [(key, fault)] = pin_rules.in_all({**long, "last": pin(1, "last")})
    assert (key, fault.path) == ("last", "token_ids")
