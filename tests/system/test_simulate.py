"""`headrace simulate` as a person runs it: a sweep with its report, and a calibration against a mesh."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import yaml

from services.console.mesh import parts
from tests.system.mesh import HEADRACE, Mesh

CONSTANTS = {
    "step_base_us": 6000.0, "prefill_token_us": 120.0, "sequence_us": 500.0, "prefill_context_us": 240.0,
    "decode_context_us": 1500.0,
}  # fmt: skip
MODEL = """
name: measured
source: "simulated:"
engines: [simulated]
replicas: 1
memory_bytes: 16000000
context_tokens: 4096
blocks: 512
block_tokens: 32
slots: 16
step_tokens: 512
capabilities: [chat]
simulation:
"""


def headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    words = [sys.executable, "-c", HEADRACE, *arguments]
    return subprocess.run(words, cwd=parts.ROOT, capture_output=True, text=True, timeout=110)


def conversations(path: Path, count: int) -> None:
    """A trace in Mooncake's format: two turns each, ten seconds apart, behind one system prompt."""
    lines = []
    for number in range(count):
        at, first = 200 * number, [0, 2 * number + 1]
        lines.append({"timestamp": at, "input_length": 1024, "output_length": 40, "hash_ids": first})
        second = [*first, 2 * number + 2]
        lines.append({"timestamp": at + 10_000, "input_length": 1400, "output_length": 60, "hash_ids": second})
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))


def test_a_sweep_makes_its_report(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.gz", tmp_path / "out"
    conversations(trace, 100)
    said = headrace(
        "simulate", str(trace), "--executors", "2", "--gpu", "l40s-8b", "--policy", "promise,round_robin",
        "--rate", "0.5,1.5", "--tenants", "2", "--async-share", "0.1", "--jobs", "2", "--seed", "3", "--out", str(out),
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    for word in ("goodput", "promise", "round_robin", "×0.5", "×1.5", "report.html"):
        assert word in said.stdout
    document = json.loads((out / "result.json").read_text())
    assert document["command"].startswith("headrace simulate ")
    assert document["setup"]["executors"] == 2
    points = {(each["policy"], each["load"]["name"]): each["measures"] for each in document["points"]}
    assert len(points) == 4
    for measures in points.values():
        assert measures["all"]["requests"] > 100
        assert measures["all"]["answered"] == measures["all"]["requests"]
        assert set(measures["tiers"]) == {"interactive", "async"}
    light = points["promise", "×0.5"]["all"]
    assert light["hit_rate"] > 0.5, "second turns found their first ones, and all the system prompt"
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png"))) == 8


def test_all_that_is_wrong_is_told_without_a_traceback(tmp_path: Path) -> None:
    said = headrace(
        "simulate", "trace.gz", "--policy", "promise,luck", "--rate", "fast", "--tenants", "none", "--gpu", "abacus"
    )
    assert said.returncode == 1
    for word in ("luck", '"fast"', '"none"', "abacus", "round_robin", "h100-8b"):
        assert word in said.stderr
    assert "Traceback" not in said.stderr
    missing = headrace("simulate", str(tmp_path / "missing"), "--out", str(tmp_path / "out"))
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr
    (tmp_path / "bad").write_text('{"timestamp": 0}\n{\n')
    bad = headrace("simulate", str(tmp_path / "bad"), "--out", str(tmp_path / "out"))
    assert bad.returncode == 1
    assert "line 1: input_length" in bad.stderr
    assert "line 2: is not JSON" in bad.stderr
    assert not (tmp_path / "out").exists()


CALIBRATIONS = 3
"""Of which one has to be right: whoever else uses the cores for a moment makes steps longer."""


def test_known_constants_come_back(tmp_path: Path) -> None:
    models = tmp_path / "policy" / "models"
    models.mkdir(parents=True)
    constants = "".join(f"  {name}: {value}\n" for name, value in CONSTANTS.items())
    (models / "measured.yaml").write_text(MODEL + constants)
    with Mesh(engine="simulated", executors=1, envoy=False, extra_policy=tmp_path / "policy") as mesh:
        for _ in range(CALIBRATIONS):
            said = headrace(
                "simulate", "calibrate", "--target", mesh.target, "--key", mesh.key, "--model", "measured",
                "--longest", "640", "--widest", "4", "--repeats", "2",
            )  # fmt: skip
            assert said.returncode == 0, said.stdout + said.stderr
            fitted = yaml.safe_load(said.stdout)["simulation"]
            ratios = {name: fitted.get(name, 0) / value for name, value in CONSTANTS.items()}
            wrong = {name: ratio for name, ratio in ratios.items() if not 0.85 < ratio < 1.15}
            if not wrong:
                return
    raise AssertionError(f"fitted {fitted}, off by {wrong}\n{said.stderr}")
