"""`headrace drill` and `headrace readiness` on a real mesh, as a person runs them."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format

from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2
from services.console.drill.values import Result, Verdict, decode
from tests.system.client import connect
from tests.system.mesh import Mesh

MODEL = "slow"
ENGINE = {
    "name": MODEL, "source": "simulated:", "engines": ["simulated"], "memory_bytes": 1_000_000,
    "context_tokens": 4096, "blocks": 1000, "block_tokens": 32, "slots": 4, "step_tokens": 512,
    "capabilities": ["chat"], "simulation": {"step_base_us": 10_000, "seed": 5},
}  # fmt: skip
"""Some 10 requests of 40 tokens a second."""
RULES = {
    "default_timeout": "60s", "max_timeout": "60s", "max_waiting": 512, "max_waiting_tokens": 262_144,
    "target_first_token": "2s", "recover_after": "0.5s",
}  # fmt: skip
LADDER = [
    {"name": "short", "at": 0.5, "clamp_output_tokens": 20},
    {"name": "lean", "at": 0.8, "no_extras": True},
    {"name": "shut", "at": 30, "reject": True},
]
TIERS = {
    "interactive": {"tier": "TIER_INTERACTIVE", **RULES, "ladder": LADDER},
    "async": {"tier": "TIER_ASYNC", **RULES},
}
VIP_KEY = "headrace-test-vip"
DRILL = ("drill", "--model", MODEL, "--tokens", "40", "--words", "20", "--hold", "1", "--first-per-s", "10")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder: Path = tmp_path_factory.mktemp("policy")
    vip = {"name": "vip", "key_sha256": [hashlib.sha256(VIP_KEY.encode()).hexdigest()], "protected": True}
    for kind, records in (("tenants", {"vip": vip}), ("models", {MODEL: ENGINE}), ("tiers", TIERS)):
        (folder / kind).mkdir()
        for name, record in records.items():
            (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(record))
    with Mesh(envoy=False, extra_policy=folder) as running:
        yield running


def result(mesh: Mesh, tier: str = "interactive") -> Result:
    return decode((mesh.state_dir / "drill" / f"{tier}.json").read_bytes())


def test_a_drill_takes_a_tier_down_its_ladder_and_leaves_a_report(mesh: Mesh) -> None:
    more = ("--scale", "0.1", "--growth", "1.8", "--seconds", "40", "--protected-key", VIP_KEY)
    ran = mesh.command(*DRILL, *more, timeout_s=80)
    found = result(mesh)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [each.rung.name for each in found.rungs] == ["short", "lean", "shut"]
    assert {each.check.verdict for each in found.rungs} == {Verdict.GO}
    assert found.passed
    assert not found.aborted
    assert found.answered > 0 < found.refused
    assert found.sent == found.answered + found.refused
    folder = mesh.state_dir / "drill"
    assert "3 of 3 rungs did what they say" in (folder / "interactive.html").read_text()
    assert (folder / "interactive-saturation.png").read_bytes().startswith(b"\x89PNG")


def test_the_go_no_go_list_has_evidence_for_each_line(mesh: Mesh) -> None:
    ran = mesh.command("readiness", "--json")
    assert ran.returncode == 1, "a mesh of one process each is not ready"
    listed = json.loads(ran.stdout)
    assert all(line["evidence"] for line in listed)

    def line(what: str) -> tuple[str, str]:
        (found,) = [each for each in listed if each["what"].startswith(what)]
        return found["verdict"], found["evidence"]

    verdict, evidence = line("each ladder was drilled")
    assert verdict == "go", "it is again the ladder that it was, and the other tier has none"
    assert "interactive: all 3 rungs did what they say" in evidence
    assert line("each tier says what it gives up") == ("no-go", "async has no ladder")
    assert line("nothing is given up now")[0] == "go"
    assert line("no stage is one process alone")[0] == "no-go"
    assert line("no tenant has a key that is in the documentation")[0] == "no-go"
    assert line("protected tenants are named")[1].startswith("vip")
    assert line("the metrics that are needed are there")[0] == "go"
    assert line("kill switches work")[0] == "go"
    kept = yaml.safe_load((mesh.state_dir / "drill" / "interactive-before.yaml").read_text())
    assert [rung["at"] for rung in kept["ladder"]] == [0.5, 0.8, 30]


def test_a_drill_that_runs_into_a_bound_stops_at_once_and_says_so(mesh: Mesh) -> None:
    ran = mesh.command(*DRILL, "--max-requests", "12")
    assert ran.returncode == 1, ran.stderr
    found = result(mesh)
    assert found.sent <= 12
    assert found.aborted
    assert "12 requests were sent" in found.stopped
    assert "12 requests were sent" in ran.stdout


def test_the_async_tier_is_drilled_alike(mesh: Mesh) -> None:
    """With a ladder that it is given for that: this one ends with the file."""
    ladder = [{"name": "brief", "at": 0.5, "clamp_output_tokens": 20}, {"name": "closed", "at": 8, "reject": True}]
    tier = json_format.ParseDict({"tier": "TIER_ASYNC", **RULES, "ladder": ladder}, policy_pb2.TierPolicy())
    asyncio.run(apply(mesh, ops.ApplyPolicyRequest(objects=[ops.PolicyObject(tier=tier)])))
    more = ("--tier", "async", "--scale", "0.1", "--growth", "1.8", "--seconds", "40", "--protected-key", VIP_KEY)
    ran = mesh.command(*DRILL, *more, timeout_s=80)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = result(mesh, "async")
    assert [each.rung.name for each in found.rungs] == ["brief", "closed"]
    assert found.passed
    assert "2 of 2 rungs did what they say" in (mesh.state_dir / "drill" / "async.html").read_text()
    assert result(mesh).order.tier == "interactive", "each tier has a report of its own"


async def apply(mesh: Mesh, request: ops.ApplyPolicyRequest) -> None:
    async with connect(mesh.target, mesh.key) as client:
        await client.operations.ApplyPolicy(request, metadata=client.metadata)
