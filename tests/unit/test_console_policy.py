"""Policies as files: what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from services.console import policy
from services.console.mesh.catalogue import runnable
from services.console.mesh.parts import POLICY_DIR
from services.console.policy import PolicyInvalid

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
        "roots/x.yaml: policies lie in tenants/, tiers/, routes/, models/",
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
