"""What stands against writing rules, and against taking one away; what names what."""

from typing import Any

import pytest
from google.protobuf.message import Message

from headrace.operations.v1 import operations_pb2
from headrace.policy.v1 import policy_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.policy.changes import Wanted, relied_on, violations, why_kept
from libs.policy.kinds import KINDS, OF_FIELD, POLICIES, key_of, of_key
from libs.policy.references import references
from libs.registry import keys


def tenant(name: str, **fields: Any) -> pb.Tenant:
    return pb.Tenant(name=name, key_sha256=[name[0] * 64], **fields)


def model(name: str, **fields: Any) -> registry_pb2.Model:
    return registry_pb2.Model(
        name=name, source="package:a", memory_bytes=1, context_tokens=64, blocks=4, block_tokens=32, slots=1,
        step_tokens=64, **fields,
    )  # fmt: skip


def stored(*messages: Message) -> dict[str, Message]:
    return {key_of(message): message for message in messages}


def told(there: dict[str, Message], *wanted: Message) -> list[str]:
    given = [Wanted(f"objects[{i}].x", message) for i, message in enumerate(wanted)]
    return [f"{each.subject}: {each.description}" for each in violations(there, given)]


OPERATOR = tenant("a", operator=True)
LARGE, SMALL = model("large"), model("small")
ROUTE = pb.Route(alias="chat", model="large", rules=[pb.RouteRule(name="r", model="small", tenants=["b"])])


def test_objects_are_judged_together_with_what_is_there_and_with_each_other() -> None:
    there = stored(OPERATOR, LARGE, SMALL)
    assert told(there, ROUTE, tenant("b", models=["chat"])) == []
    assert told(there, ROUTE) == ["objects[0].x.rules[0].tenants[0]: there is no 'b'"]
    assert told(there, tenant("b"), tenant("b")) == ["objects[1].x.name: objects[0].x is the same object"]


def test_what_was_wrong_before_does_not_count() -> None:
    there = stored(OPERATOR, LARGE, pb.Route(alias="old", model="gone"))
    assert told(there, tenant("b", models=["large"])) == []
    assert told(there, pb.Route(alias="old", model="gone", small_model="large")) == [
        "objects[0].x.model: there is no 'gone'"
    ]


def test_what_would_be_wrong_after_it_does() -> None:
    report = pb.Contract(name="report", tools=[pb.ContractTool(tool="gate", retries=1)])
    gate = pb.Tool(name="gate", description="x", arguments_schema='{"type": "object"}', url="http://a", idempotent=True)
    there = stored(OPERATOR, gate, report)
    harmful = pb.Tool()
    harmful.CopyFrom(gate)
    harmful.idempotent = False
    [said] = told(there, harmful)
    assert said.startswith(
        "objects: the contract 'report', which is there, would be wrong: tools[0].retries: 1, but 'gate'"
    )


def test_the_last_operator_stays_one() -> None:
    there = stored(OPERATOR, tenant("b"))
    assert told(there, tenant("a"))[0].startswith("objects: then no tenant would be an operator any more")
    assert told(there, tenant("a"), tenant("b", operator=True)) == []
    assert [each.subject for each in why_kept(there, "tenants", "a")] == ["name"]
    assert why_kept(there, "tenants", "b") == []


def test_a_name_that_is_none_lies_nowhere_and_is_a_fault() -> None:
    [said] = told(stored(OPERATOR), tenant("a/b"))
    assert said.startswith("objects[0].x.name: 'a/b' is not a name: a-z")


@pytest.mark.parametrize(
    ("folder", "name", "told"),
    [
        ("tenants", "b", ["the route 'chat' names it (rules[0].tenants[0]): change that first"]),
        ("routes", "chat", ["the tenant 'b' names it (models[0]): change that first"]),
        ("tools", "gate", ["the contract 'report' names it (tools[0].tool): change that first"]),
        ("issuers", "idp", ["the tenant 'b' names it (token_subjects[0].issuer): change that first"]),
        ("contracts", "report", []),
        ("breakers", "large", []),
    ],
)
def test_what_is_named_stays(folder: str, name: str, told: list[str]) -> None:
    there = stored(
        OPERATOR, LARGE, SMALL, ROUTE, pb.Tool(name="gate"), pb.TokenIssuer(name="idp"), pb.Breaker(name="large"),
        tenant("b", models=["chat"], token_subjects=[pb.TokenSubject(issuer="idp", subject="x")]),
        pb.Contract(name="report", tools=[pb.ContractTool(tool="gate")]),
    )  # fmt: skip
    assert [each.description for each in why_kept(there, folder, name)] == told


def test_a_tenant_that_names_a_model_does_not_keep_the_route_of_that_name() -> None:
    there = stored(OPERATOR, LARGE, tenant("b", models=["large"]), pb.Route(alias="large", model="large"))
    assert why_kept(there, "routes", "large") == []


def test_what_is_relied_on_is_what_is_there() -> None:
    there = stored(OPERATOR, LARGE, SMALL)
    assert relied_on(there, [ROUTE]) == {keys.model("large"), keys.model("small")}
    assert relied_on({**there, **stored(tenant("b"))}, [ROUTE]) >= {keys.tenant("b")}


def test_every_name_in_a_route_is_known() -> None:
    route = pb.Route(
        alias="chat", model="m1", small_model="m2",
        rules=[pb.RouteRule(model="m3", tenants=["t1"])], fallbacks=[pb.Fallback(model="m4"), pb.Fallback(reject=True)],
        canary=pb.Canary(model="m5", tenants=["t2"]), shadow=pb.Shadow(model="m6", tenants=["t3"]),
        hedge=pb.Hedge(model="m7"), cascade=pb.Cascade(models=["m8", "m9"]),
    )  # fmt: skip
    found = {(each.folders[0], each.name) for each in references(route)}
    assert found == {("models", f"m{i}") for i in range(1, 10)} | {("tenants", f"t{i}") for i in range(1, 4)}


def test_every_kind_lies_where_its_keys_say() -> None:
    for kind in KINDS.values():
        assert kind.key("interactive").startswith(kind.prefix)
        assert of_key(kind.key("interactive")) == (kind, "interactive")
    assert sorted(POLICIES) == list(POLICIES)
    assert set(OF_FIELD) == {field.name for field in operations_pb2.PolicyObject.DESCRIPTOR.fields}
    with pytest.raises(KeyError):
        of_key(keys.switch("model", "x"))
