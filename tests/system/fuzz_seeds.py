"""Valid requests to begin with, and what the mesh under the fuzzer knows beyond its default rules.

An RPC that is not in `seeds` begins with an empty message, and with one whose strings are names that exist.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2 as policy
from headrace.registry.v1 import registry_pb2 as registry

MODEL = "fuzz"
OTHER = "fuzz-other"
ROUTE = "fuzz-route"
CONTRACT = "fuzz-contract"
TENANT = "fuzzed"
"""Generates; operates nothing. The operator that fuzzes is the default policy's."""
KEY = "headrace-fuzzed-key"
CATALOGUE = """
name: {name}
source: "simulated:"
engines: [simulated]
memory_bytes: 1000000
context_tokens: 512
blocks: 4096
block_tokens: 32
slots: 64
step_tokens: 4096
capabilities: [chat, log_probs]
simulation:
  step_base_us: 500
  seed: 7
"""
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'


def write_policy(folder: Path) -> None:
    """The rules of the mesh, as files."""
    for kind in ("models", "tenants"):
        (folder / kind).mkdir(parents=True)
    for name in (MODEL, OTHER):
        (folder / "models" / f"{name}.yaml").write_text(CATALOGUE.format(name=name))
    digest = sha256(KEY.encode()).hexdigest()
    (folder / "tenants" / f"{TENANT}.yaml").write_text(f"name: {TENANT}\nkey_sha256: [{digest}]\n")


def rules() -> Sequence[ops.PolicyObject]:
    """Rules that are written through the operations API."""
    tool = policy.Tool(
        name="fuzz-tool", description="Answers nothing.", arguments_schema=SCHEMA, url="http://127.0.0.1:9"
    )
    contract = policy.Contract(name=CONTRACT, tools=[policy.ContractTool(tool="fuzz-tool")], max_steps=2)
    route = policy.Route(
        alias=ROUTE,
        model=MODEL,
        rules=[policy.RouteRule(name="tagged", model=OTHER, tags={"team": "blue"})],
        fallbacks=[policy.Fallback(model=OTHER)],
        canary=policy.Canary(model=OTHER, share=0.2),
        hedge=policy.Hedge(quantile=0.95, max_share=0.05),
        small_model=OTHER,
    )
    breaker = policy.Breaker(name=MODEL, error_share=0.5, min_works=10)
    return [
        ops.PolicyObject(tool=tool),
        ops.PolicyObject(contract=contract),
        ops.PolicyObject(route=route),
        ops.PolicyObject(breaker=breaker),
    ]


def generates() -> Sequence[pb.GenerateRequest]:
    """Requests that are answered with a few tokens."""
    few = pb.Sampling(max_tokens=3, ignore_end=True)
    chat = pb.Chat(messages=[pb.Message(role=pb.ROLE_SYSTEM, content="s"), pb.Message(role=pb.ROLE_USER, content="u")])
    full = pb.Sampling(
        max_tokens=3, temperature=0.5, top_p=0.9, top_k=5, seed=3, repetition_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=0.1, stop=["zz"],
    )  # fmt: skip
    rich = pb.GenerateRequest(
        model=MODEL, chat=chat, sampling=full, log_probs=True, tier=pb.TIER_ASYNC, request_id="fuzz-1",
        tags={"team": "red"}, output_form=pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS, requires=["chat"],
    )  # fmt: skip
    rich.timeout.seconds = 2
    return [
        pb.GenerateRequest(model=MODEL, prompt="Why?", sampling=few),
        rich,
        pb.GenerateRequest(model=MODEL, prompt="Why? Well, because", sampling=few, resumed_token_ids=[5, 6]),
        pb.GenerateRequest(model=ROUTE, prompt="Which?", sampling=few, tags={"team": "blue"}),
        pb.GenerateRequest(model=MODEL, chat=chat, sampling=few, contract=CONTRACT),
        pb.GenerateRequest(model=MODEL, prompt="n", sampling=few, grammar=pb.Grammar(json_schema=SCHEMA)),
        pb.GenerateRequest(model=MODEL, prompt="n", sampling=few, grammar=pb.Grammar(regex="[a-z]+")),
    ]


def seeds() -> Mapping[str, Sequence[Message]]:
    """Valid requests by the name of their message."""
    chat = generates()[1].chat
    model = registry.Model(
        name="fuzz-new", source="simulated:", engines=["simulated"], memory_bytes=1000, context_tokens=128, blocks=16,
        block_tokens=16, slots=2, step_tokens=64, replicas=1,
    )  # fmt: skip
    objects = [
        policy.Tenant(name="fuzz-tenant", key_sha256=["0" * 64], max_concurrency=3, requests_per_s=5, weight=2),
        policy.TierPolicy(tier=pb.TIER_ASYNC, max_waiting=10, ladder=[policy.Rung(name="r", at=1, defer=True)]),
        policy.Route(alias="fuzz-alias", model=MODEL, cascade=policy.Cascade(models=[MODEL, OTHER])),
        policy.Scheduling(name=OTHER, dispatch=policy.DISPATCH_POLICY_ROUND_ROBIN),
        policy.Breaker(name=OTHER, error_share=0.5, probes=1),
        policy.Contract(name="fuzz-agreed", output_schema=SCHEMA, repairs=1, tenants=[TENANT]),
        policy.Tool(name="fuzz-called", description="d", arguments_schema=SCHEMA, url="http://127.0.0.1:9/x"),
        policy.TokenIssuer(name="fuzz-issuer", issuer="https://id", audience="a", key_set='{"keys": []}'),
    ]
    fields = [field.name for field in ops.PolicyObject.DESCRIPTOR.fields]
    named: list[dict[str, Any]] = [{field: each} for field, each in zip(fields, objects, strict=True)]
    every = [ops.PolicyObject(**each) for each in named]
    pin = ops.PinPrefixRequest(name="fuzz-pin", model=MODEL, prompt="The miller has a mill. " * 20)
    switch = policy.Switch(kind=policy.SWITCH_KIND_MODEL, name="fuzz-none", reason="a test")
    listed: list[tuple[Message, ...]] = [
        tuple(generates()),
        tuple(pb.SessionRequest(generates=[pb.SessionGenerate(id=1, request=each)]) for each in generates()),
        (pb.CountTokensRequest(model=MODEL, prompt="How long?"), pb.CountTokensRequest(model=MODEL, chat=chat)),
        (pb.ApproveRequest(approval_id="0" * 32, approved=True, reason="yes"),),
        (ops.ApplyModelsRequest(models=[model]), ops.ApplyModelsRequest(models=[model], dry_run=True)),
        (ops.DeleteModelRequest(name="fuzz-new"),),
        (ops.WatchPlacementsRequest(models=[MODEL]),),
        (ops.PutSwitchRequest(switch=switch),),
        (ops.DeleteSwitchRequest(kind=switch.kind, name=switch.name),),
        (pin, ops.PinPrefixRequest(name="fuzz-chat", model=MODEL, chat=pb.Chat(messages=[_system()]))),
        (ops.UnpinPrefixRequest(name="fuzz-pin"),),
        tuple(ops.ApplyPolicyRequest(objects=[each], dry_run=dry) for each in every for dry in (True, False)),
        (
            *(ops.DeletePolicyRequest(kind="breakers", name=MODEL) for _ in range(3)),  # the others are seldom there
            ops.DeletePolicyRequest(kind="tenants", name="fuzz-tenant"),
            ops.DeletePolicyRequest(kind="routes", name="fuzz-alias"),
            ops.DeletePolicyRequest(kind="tools", name="fuzz-tool"),
        ),
        (ops.ListAuditRequest(tenant=TENANT, page_size=5), ops.ListAuditRequest(page_token="9/admission-1/9")),
        (ops.DeleteAuditRequest(tenant="fuzz-tenant"),),
        tuple(ops.ExplainRequest(request=each, tenant=TENANT) for each in generates()),
    ]  # fmt: skip
    return {group[0].DESCRIPTOR.full_name: group for group in listed}


def _system() -> pb.Message:
    return pb.Message(role=pb.ROLE_SYSTEM, content="You are the miller, and you speak of the mill. " * 20)
