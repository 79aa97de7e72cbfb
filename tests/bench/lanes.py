"""What the lanes cost: the whole mesh with a simulated engine, measured through Generate and Session.

    python -m tests.bench.lanes [--rounds 3] [--seconds 4] [--out FILE.json]

Starts a mesh of its own (no Envoy: it is not ours to measure), runs each case `--rounds` times, interleaved,
and prints medians: tokens/s, CPU µs per token of each process (user + system, from /proc), and TTFT. The
engine's steps take no time in the `flood` cases, so that everything measured is the mesh's own; in the
`paced` case they take 10 ms. Beside them stand the figures of the prototype of the design (docs/lanes.md).
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench.generator import driven
from tests.system.mesh import Mesh

STAGES = ("admission", "router", "batcher", "executor", "kvcache", "placement")
PROTOTYPE = {
    ("flood", "session", 64): "229,000 tok/s; 0.3–2 µs per token and hop",
    ("flood", "session", 256): "455,000 tok/s; 0.3–2 µs per token and hop",
    ("flood", "generate", 64): "edge 20–37 µs per token",
    ("flood", "generate", 256): "edge 20–37 µs per token",
    ("paced", "session", 64): "3–4 µs per token and inner hop",
}
"""From the design: five processes, grpcio 1.85, uvloop, 2 shared cores, 128-token answers, no tracing."""
MODEL = """
name: {name}
source: "simulated:"
engines: [simulated]
memory_bytes: 1000000
context_tokens: 8192
blocks: 16384
block_tokens: 32
slots: 512
step_tokens: 8192
capabilities: [chat, log_probs]
simulation:
  step_base_us: {step_us}
  seed: 7
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    pace: str
    """The model: "flood" (steps take no time) or "paced" (10 ms)."""
    door: str
    flight: int


CASES = [
    *(Case("flood", door, flight) for door in ("generate", "session") for flight in (1, 64, 256)),
    *(Case("paced", door, flight) for door in ("generate", "session") for flight in (1, 64)),
]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run."""

    tokens_per_s: float
    requests_per_s: float
    errors: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    cpu_us_per_token: dict[str, float]
    """By stage."""


def measure(mesh: Mesh, case: Case, seconds: float) -> Result:
    """One run of one case."""
    command = [
        sys.executable, "-m", "tests.bench.load", "--target", mesh.target, "--key", mesh.key, "--model", case.pace,
        "--door", case.door, "--flight", str(case.flight), "--seconds", str(seconds),
    ]  # fmt: skip
    said, cpu_s = driven(command, {stage: mesh.pid(f"{stage}-1") for stage in STAGES})
    tokens = max(said["tokens"], 1)
    return Result(
        tokens_per_s=said["tokens_per_s"],
        requests_per_s=said["requests_per_s"],
        errors=said["errors"],
        ttft_p50_ms=said["ttft_p50_ms"],
        ttft_p99_ms=said["ttft_p99_ms"],
        cpu_us_per_token={stage: seconds * 1e6 / tokens for stage, seconds in cpu_s.items()},
    )


def report(results: Mapping[Case, list[Result]]) -> Table:
    """Medians, and the prototype's figures beside them."""
    table = Table(title="Lanes: medians; CPU in µs per token and process", show_lines=False)
    columns = ["case", "in flight", "tokens/s", "req/s", "TTFT p50", "p99 (ms)", *STAGES[:5], "sum", "prototype"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("case", "prototype") else "right")
    for case, runs in results.items():
        cpu = [statistics.median(run.cpu_us_per_token[stage] for run in runs) for stage in STAGES[:5]]
        table.add_row(
            f"{case.door}, {case.pace}",
            str(case.flight),
            f"{statistics.median(run.tokens_per_s for run in runs):,.0f}",
            f"{statistics.median(run.requests_per_s for run in runs):,.0f}",
            f"{statistics.median(run.ttft_p50_ms for run in runs):.1f}",
            f"{statistics.median(run.ttft_p99_ms for run in runs):.1f}",
            *(f"{value:.2f}" for value in cpu),
            f"{sum(cpu):.1f}",
            PROTOTYPE.get((case.pace, case.door, case.flight), ""),
        )
    return table


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--trace-ratio", type=float, default=1.0, help="share of requests that are traced")
    parser.add_argument("--out", type=Path, help="also write every run as JSON")
    arguments = parser.parse_args()
    console = Console(width=170)
    results: dict[Case, list[Result]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder)
        (policy / "models").mkdir()
        for name, step_us in (("flood", 0), ("paced", 10_000)):
            (policy / "models" / f"{name}.yaml").write_text(MODEL.format(name=name, step_us=step_us))
        environment = {"HEADRACE_TRACE_RATIO": str(arguments.trace_ratio)}
        with Mesh(engine="simulated", executors=1, envoy=False, extra_policy=policy, env=environment) as mesh:
            for number in range(arguments.rounds):
                for case in CASES:
                    result = measure(mesh, case, arguments.seconds)
                    results[case].append(result)
                    console.print(
                        f"round {number + 1}: {case.door}, {case.pace}, {case.flight} in flight: "
                        f"{result.tokens_per_s:,.0f} tokens/s, {result.errors} errors",
                        style="dim",
                    )
    console.print(report(results))
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}"
    console.print(f"{machine}; tracing {arguments.trace_ratio:.0%}; {arguments.rounds} rounds of {arguments.seconds} s")
    if arguments.out:
        runs = [{**asdict(case), "runs": [asdict(run) for run in of_case]} for case, of_case in results.items()]
        arguments.out.write_text(json.dumps({"machine": machine, "cases": runs}, indent=1))


if __name__ == "__main__":
    main()
