"""Policies as files: what is read, and what is refused."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.policy.kinds import KINDS
from services.console import policy
from services.console.commands import policy as commands
from services.console.mesh.catalogue import runnable
from services.console.mesh.parts import POLICY_DIR
from services.console.policy import PolicyInvalid
from services.console.problem import Problem

MODEL = """
name: {name}
source: "simulated:"
memory_bytes: 1000
context_tokens: 64
blocks: 4
block_tokens: 32
slots: 2
step_tokens: 64
"""
HASH = "a" * 64
LADDER = """
ladder:
  - {name: short, at: 0.9, clamp_output_tokens: 9}
  - name: small
    smaller_model: true
    at: 1
"""
TOOL = """
name: depth
description: The depth of the river.
arguments_schema: '{"type": "object"}'
url: http://gauges/depth
idempotent: true
"""
ISSUER = f"""
name: idp
issuer: https://idp.example
audience: headrace
key_set: |
  {{"keys": [{{"kty": "OKP", "crv": "Ed25519", "x": "{"A" * 43}"}}]}}
"""

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


def faults(folder: Path) -> list[str]:
    with pytest.raises(PolicyInvalid) as caught:
        policy.load(folder)
    return caught.value.faults


def test_the_policy_that_is_shipped_is_valid() -> None:
    shipped = policy.load(POLICY_DIR)
    assert [model.name for model in shipped.models] == ["simulated", "smollm2"]
    assert [model.name for model in runnable(shipped.models, ["simulated"])] == ["simulated"]
    assert [model.name for model in runnable(shipped.models, ["openvino"])] == ["smollm2"]
    assert shipped.accepts(policy.DEVELOPMENT_KEY)
    assert not shipped.accepts("another key")
    route = shipped.objects["/headrace/v1/policies/routes/default"]
    assert isinstance(route, policy_pb2.Route)
    assert route.model == "smollm2"


def test_a_check_says_of_how_much_it_is_and_what_does_nothing(tmp_path: Path, write: Write) -> None:
    console = Console(file=StringIO(), width=200)
    write("tiers/async.yaml", TIER.format(tier="TIER_ASYNC", more=LADDER))
    commands.check(tmp_path, console)
    assert isinstance(console.file, StringIO)
    remark, said = console.file.getvalue().splitlines()
    assert remark.startswith("! tiers/async.yaml:10: ladder[1].smaller_model: no route has a small_model, so this rung")
    assert said == "1 tiers: valid"
    write("tiers/async.yaml", "tier: TIER_ASYNC")
    with pytest.raises(Problem) as problem:
        commands.check(tmp_path, console)
    assert problem.value.details[0].startswith("tiers/async.yaml:1: default_timeout: must be more than 0s")


@pytest.mark.parametrize(
    ("ladder", "fault"),
    [
        ("ladder: [{name: a, at: 1, reject: true, defer: true}]", "6: ladder[0].defer: it stands beside 'reject'"),
        ("ladder: [{name: a, at: 1, rejected: true}]", "6: ladder[0].rejected: Rung has no such field; did you mean"),
        ("ladder:\n  - name: a\n    at: high\n    reject: true", "8: ladder[0].at: 'high' is not a number"),
        ("ladder:\n  - {name: a, at: 1, reject: true}\n  - none", "8: ladder[1]: 'none' is not a mapping"),
        ("ladder:\n  - name: a\n    at: 1", "7: ladder[0]: exactly one of clamp_output_tokens, "),
    ],
)
def test_what_is_wrong_within_a_list_has_its_line(tmp_path: Path, write: Write, ladder: str, fault: str) -> None:
    write("tiers/async.yaml", TIER.format(tier="TIER_ASYNC", more=ladder))
    [told] = faults(tmp_path)
    assert told.startswith(f"tiers/async.yaml:{fault}")


def test_rules_of_every_kind_lie_in_folders_of_their_own(tmp_path: Path, write: Write) -> None:
    write("models/tiny.yaml", MODEL.format(name="tiny"))
    write("breakers/default.yaml", "name: default\nwindow: 20s\n")
    write("tools/depth.yaml", TOOL)
    write("contracts/report.yaml", "name: report\ntools:\n  - tool: depth\n    retries: 1\n")
    write("issuers/idp.yaml", ISSUER)
    write("tenants/a.yaml", "name: a\ntoken_subjects:\n  - issuer: idp\n    subject: me\n")
    assert [key.removeprefix("/headrace/v1/") for key in policy.load(tmp_path).objects] == [
        "policies/breakers/default", "policies/contracts/report", "policies/issuers/idp", "models/tiny",
        "policies/tenants/a", "policies/tools/depth",
    ]  # fmt: skip
    write("contracts/report.yaml", "name: report\ntools:\n  - retries: 1\n    tool: dept\n")
    write("tenants/a.yaml", "name: a\ntoken_subjects:\n  - subject: me\n    issuer: ipd\n")
    assert faults(tmp_path) == [
        "contracts/report.yaml:4: tools[0].tool: there is no 'dept'; did you mean 'depth'?",
        "tenants/a.yaml:4: token_subjects[0].issuer: there is no 'ipd'; did you mean 'idp'?",
    ]


def test_nobody_sees_a_name_before_what_it_stands_for() -> None:
    order = list(KINDS)
    for behind, in_front in (
        ("tenants", ("models", "issuers")), ("routes", ("models", "tenants")), ("contracts", ("tools", "tenants")),
        ("scheduling", ("models",)), ("breakers", ("models",)), ("pins", ("models", "tenants")),
    ):  # fmt: skip
        assert all(order.index(each) < order.index(behind) for each in in_front)


def test_objects_lie_under_the_keys_of_the_registry(tmp_path: Path, write: Write) -> None:
    write("models/tiny.yaml", MODEL.format(name="tiny"))
    write(
        "tiers/async.yaml",
        "tier: TIER_ASYNC\ndefault_timeout: 60s\nmax_timeout: 90s\nmax_waiting: 1\nmaxWaitingTokens: 2\n",
    )
    write("tenants/a.yaml", f"name: a\nkey_sha256: [{HASH}]\nmodels: [tiny]\n")
    write("routes/t.json", '{"alias": "t", "model": "tiny"}')
    write("tenants/.a.yaml.swp", "an editor's")
    loaded = policy.load(tmp_path)
    assert sorted(loaded.objects) == [
        "/headrace/v1/models/tiny", "/headrace/v1/policies/routes/t", "/headrace/v1/policies/tenants/a",
        "/headrace/v1/policies/tiers/async",
    ]  # fmt: skip
    assert isinstance(loaded.objects["/headrace/v1/models/tiny"], registry_pb2.Model)


def test_every_fault_of_every_file_is_told(tmp_path: Path, write: Write) -> None:
    write("models/tiny.yaml", MODEL.format(name="other").replace("slots: 2", "slots: many\nweight: 3"))
    write(
        "models/small.yaml",
        MODEL.format(name="small").replace("blocks: 4", "blocks: 1").replace("slots: 2", "slots: 0"),
    )
    write("tenants/a.yaml", "name: a\nkey_sha256: [secret]\nmodels: [nobody]\n")
    write("routes/lost.yaml", "alias: lost\nmodel: nowhere\n")
    write("tiers/async.yaml", "tier: TIER_ASYNC\ndefault_timeout: 60s\nmax_timeout: 30s\nmax_waiting: 1\n")
    write("roots/x.yaml", "name: x")
    write("models/broken.yaml", "name: [")
    told = "\n".join(faults(tmp_path))
    for part in (
        "models/tiny.yaml:8: slots: 'many' is not a whole number, 0 or more",
        "models/tiny.yaml:9: weight: Model has no such field",
        "models/tiny.yaml:2: name: it describes 'other'; file and object have the same name",
        "models/small.yaml:8: slots: must be more than 0",
        "models/small.yaml:6: blocks: 1 of 32 tokens do not hold one context of 64 tokens: at least 2",
        "tenants/a.yaml:2: key_sha256[0]: 'secret'… is not a SHA-256",
        "tenants/a.yaml:3: models[0]: there is no 'nobody'",
        "routes/lost.yaml:2: model: there is no 'nowhere'",
        "tiers/async.yaml:3: max_timeout: must not be less than default_timeout",
        "tiers/async.yaml:1: max_waiting_tokens: must be more than 0",
        "roots/x.yaml: policies lie in models/, tiers/, issuers/, tools/, tenants/, routes/",
        "models/broken.yaml:1: not YAML",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("models/tiny.yaml", MODEL.format(name="other"), "it describes 'other'; file and object have the same name"),
        ("models/Tiny.yaml", MODEL.format(name="Tiny"), "'Tiny' is not a name"),
        ("tenants/a.yaml", "- a\n- b\n", "not a mapping of fields"),
        ("tenants/a.txt", "name: a", "its name does not end in"),
        ("tenants/a.yaml", "name: a\n", "a tenant without a key cannot come in"),
        ("tiers/async.yaml", "default_timeout: 60s\nmax_timeout: 60s\n", "'unspecified'"),
        ("tiers/sync.yaml", "tier: TIER_SYNC\n", "'TIER_SYNC' is not one of TIER_INTERACTIVE, TIER_ASYNC"),
    ],
)  # fmt: skip
def test_one_fault(tmp_path: Path, write: Write, name: str, text: str, fault: str) -> None:
    write(name, text)
    assert any(line.startswith(f"{name}:") and fault in line for line in faults(tmp_path)), faults(tmp_path)


TENANT = "name: {name}\nkey_sha256: [{hash}]\n{more}"
SCHEDULING = "name: default\ndispatch: DISPATCH_POLICY_PROMISE\n"
TIER = "tier: {tier}\ndefault_timeout: 60s\nmax_timeout: 90s\nmax_waiting: 1\nmax_waiting_tokens: 2\n{more}"
PIN = "name: p\nmodel: tiny\ntoken_ids: [{tokens}]\n{more}"
BLOCK = ", ".join(map(str, range(32)))


def test_rules_of_scheduling_and_pins_lie_beside_the_others(tmp_path: Path, write: Write) -> None:
    write("models/tiny.yaml", MODEL.format(name="tiny"))
    write("scheduling/default.yaml", SCHEDULING)
    write("scheduling/tiny.yaml", "name: tiny\nreserve: RESERVE_POLICY_ESTIMATE\novercommit: 1.5\nquantile: 0.95\n")
    write("tenants/a.yaml", TENANT.format(name="a", hash=HASH, more="isolated: true\nweight: 2.5\n"))
    write(
        "tiers/async.yaml", TIER.format(tier="TIER_ASYNC", more="target_first_token: 60s\ntarget_stretch: 5\nage: 30s")
    )
    write("pins/p.yaml", PIN.format(tokens=BLOCK, more="tenant: a\ncopies: 2\n"))
    objects = policy.load(tmp_path).objects
    assert sorted(key.removeprefix("/headrace/v1/") for key in objects) == [
        "models/tiny", "policies/pins/p", "policies/scheduling/default", "policies/scheduling/tiny",
        "policies/tenants/a", "policies/tiers/async",
    ]  # fmt: skip
    pin = objects["/headrace/v1/policies/pins/p"]
    assert isinstance(pin, policy_pb2.Pin)
    assert list(pin.token_ids) == list(range(32))


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("scheduling/tiny.yaml", "name: tiny\novercommit: 1.5\n", "2: overcommit: 1.5: more than 1 only with"),
        ("scheduling/tiny.yaml", "name: tiny\novercommit: -1\n", "2: overcommit: -1: a share"),
        ("scheduling/tiny.yaml", "name: tiny\novercommit: .nan\n", "2: overcommit: nan is not a number"),
        ("scheduling/tiny.yaml", "name: tiny\nquantile: 1\n", "2: quantile: 1: a quantile"),
        ("scheduling/tiny.yaml", "name: tiny\nheadroom: 0.95\n", "2: headroom: 0.95: a share"),
        ("scheduling/tiny.yaml", "name: tiny\nmax_hold_s: 61\n", "2: max_hold_s: 61: seconds, from 0 to 60"),
        ("scheduling/tiny.yaml", "name: tiny\nprefill_ahead_s: -1\n", "2: prefill_ahead_s: -1: seconds"),
        ("scheduling/tiny.yaml", "name: tiny\nmax_pushes: 101\n", "2: max_pushes: 101: at most 100"),
        ("scheduling/tiny.yaml", "name: tiny\nwarm_prefixes: 1001\n", "2: warm_prefixes: 1001: at most"),
        ("scheduling/tiny.yaml", "name: tiny\nwarm_prefixes: 3\ncold_start: true\n", "2: warm_prefixes: 3, but"),
        ("scheduling/tini.yaml", "name: tini\n", "1: name: there is no model 'tini'; did you mean 'tiny'?"),
        ("scheduling/lora.yaml", "name: lora\n", "1: name: 'lora' is an adapter and runs as its base does: name"),
        ("scheduling/tiny.yaml", "name: tiny\ndispatch: PROMISE\n", "did you mean 'DISPATCH_POLICY_PROMISE'?"),
        ("tenants/a.yaml", TENANT.format(name="a", hash=HASH, more="weight: -1"), "3: weight: -1: a share"),
        ("tenants/a.yaml", TENANT.format(name="a", hash=HASH, more="weight: .inf"), "3: weight: inf is not a number"),
        ("tiers/async.yaml", TIER.format(tier="TIER_ASYNC", more="age: 0s"), "6: age: 0s: more than 0s"),
        ("tiers/async.yaml", TIER.format(tier="TIER_ASYNC", more="target_first_token: 3601s"), "at most 3600s"),
        ("tiers/async.yaml", TIER.format(tier="TIER_ASYNC", more="target_stretch: 0.5"), "6: target_stretch: 0.5: a"),
        ("tiers/interactive.yaml", TIER.format(tier="TIER_INTERACTIVE", more="age: 9s"), "6: age: interactive work is"),
        ("pins/p.yaml", PIN.format(tokens="1, 2", more=""), "3: token_ids: 2 tokens: a block of 'tiny' has 32"),
        ("pins/p.yaml", PIN.format(tokens="", more=""), "3: token_ids: required"),
        ("pins/p.yaml", PIN.format(tokens=f"{BLOCK}, {BLOCK}", more=""), "3: token_ids: 64 tokens leave no room in a"),
        ("pins/p.yaml", PIN.format(tokens=BLOCK, more="tenant: open"), "4: tenant: 'open' is not isolated"),
        ("pins/p.yaml", PIN.format(tokens=BLOCK, more="tenant: opens"), "there is no 'opens'; did you mean 'open'?"),
        ("pins/p.yaml", PIN.format(tokens=BLOCK, more="tenant: shut"), "4: tenant: 'shut' may not use 'tiny'"),
        ("pins/p.yaml", PIN.format(tokens=BLOCK, more="copies: 10001"), "4: copies: 10001: at most 10000"),
        ("pins/p.yaml", PIN.replace("tiny", "tini").format(tokens=BLOCK, more=""), "2: model: there is no 'tini'; did"),
        ("pins/p.yaml", PIN.replace("name: p", "name: q").format(tokens=BLOCK, more=""), "1: name: it describes 'q'"),
        ("pins/p.yaml", PIN.format(tokens=BLOCK, more="tokens: 3"), "4: tokens: Pin has no such field; did you mean"),
    ],
)  # fmt: skip
def test_one_fault_of_scheduling(tmp_path: Path, write: Write, name: str, text: str, fault: str) -> None:
    write("models/tiny.yaml", MODEL.format(name="tiny") + "adapter_memory_bytes: 9\n")
    write("models/lora.yaml", "name: lora\nsource: here\nbase: tiny\nmemory_bytes: 9\n")
    write("tenants/open.yaml", TENANT.format(name="open", hash="b" * 64, more=""))
    write("tenants/shut.yaml", TENANT.format(name="shut", hash="c" * 64, more="isolated: true\nmodels: [lora]"))
    write(name, text)
    told = faults(tmp_path)
    assert len(told) == 1
    assert told[0].startswith(f"{name}:")
    assert fault in told[0]


def test_every_fault_of_an_object_is_told(tmp_path: Path, write: Write) -> None:
    write("models/tiny.yaml", MODEL.format(name="tiny"))
    write("scheduling/nobody.yaml", "name: nobody\novercommit: 20\nquantile: 2\nheadroom: 1\n")
    write("pins/p.yaml", "name: p\ntenant: nobody\ncopies: 20000\n")
    assert [fault.split(":")[2].strip() for fault in faults(tmp_path)] == [
        "model", "token_ids", "copies", "overcommit", "quantile", "headroom", "tenant", "name",
    ]  # fmt: skip


def test_the_longest_prefix_that_can_be_pinned(tmp_path: Path, write: Write) -> None:
    tokens = ", ".join(map(str, range(32_768)))
    write("models/tiny.yaml", MODEL.format(name="tiny").replace("64", "65536").replace("blocks: 4", "blocks: 2048"))
    write("pins/p.yaml", PIN.format(tokens=tokens, more=""))
    assert len(policy.load(tmp_path).objects) == 2
    write("pins/p.yaml", PIN.format(tokens=f"{tokens}, 1", more=""))
    assert faults(tmp_path) == ["pins/p.yaml:3: token_ids: 32769 tokens: at most 32768"]


def test_a_key_has_one_owner_and_an_object_one_file(tmp_path: Path, write: Write) -> None:
    write("models/tiny.yaml", MODEL.format(name="tiny"))
    write("models/tiny.yml", MODEL.format(name="tiny"))
    write("tenants/a.yaml", f"name: a\nkey_sha256: [{HASH}]\n")
    write("tenants/b.yaml", f"name: b\nkey_sha256: [{HASH}]\n")
    assert faults(tmp_path) == [
        "models/tiny.yml: models/tiny.yaml is the same object",
        "tenants/b.yaml:2: key_sha256[0]: 'a' has the key aaaaaaaa… too",
    ]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert faults(tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'}: no such folder"]
