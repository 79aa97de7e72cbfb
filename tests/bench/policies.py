"""Dispatch policies beside each other: goodput of a trace of conversations over 16, 64 and 256 simulated executors.

    python -m tests.bench.policies TRACE [--executors 16,64,256] [--jobs 2] [--out FILE.json]

Everything but the policy is the same for all: the queue's bounds, the prefix index, the engines and their settings.
`step_tokens` is 512, with which the peers' policies do best of 512, 768 and 1,024: longer steps break the time between
tokens that is promised. The load of each executor is the same at all three sizes:
the trace's time is compressed, and a mesh of k × 16 executors gets k copies of it, each with prefixes of its own.

The knee of a size is the first load at which no peer's policy answers 90 % within the SLO.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.batcher.policies import NAMES
from services.simulator import run
from services.simulator.measure import Slo
from services.simulator.mix import Mix
from services.simulator.points import Point

OURS = "promise"
STEP_TOKENS = 512
PER_COPY = 16
"""Executors that one copy of the trace is played against."""
RATES = {16: (4.0, 5.0, 6.0, 6.5, 7.0, 8.0), 64: (5.0, 6.0, 6.5, 7.0), 256: (5.0, 6.5, 7.0)}
"""By how much the trace's time is compressed. Its own pace is 3.4 requests per second."""
REQUESTS = {16: 5000, 64: 3000, 256: 1200}
"""Of each copy."""
HELD = 0.9


def sweep(trace: Path, executors: int, policies: Sequence[str], jobs: int, console: Console) -> Sequence[Point]:
    """All policies at all loads of one size."""
    engine = replace(run.engine("h100-8b"), step_tokens=STEP_TOKENS)
    mix = Mix(copies=max(executors // PER_COPY, 1), requests=REQUESTS[executors], spread_s=3.0, seed=1)
    loads = [(f"x{rate:g}", replace(mix, rate=rate)) for rate in RATES[executors]]
    order = run.Order(trace, engine, executors, 0, policies, loads, Slo(), 1, jobs, "tests.bench.policies")
    with console.status(f"{executors} executors") as status:
        finished = run.run(
            order, lambda shares, done: status.update(f"{executors} executors: {done} of {len(shares)} simulated")
        )
    return finished.points


def row(point: Point) -> dict[str, object]:
    """What is kept of a point."""
    every = point.measures.all
    return {
        "policy": point.policy,
        "load": point.load.name,
        "offered_per_s": round(point.load.requests_per_s, 2),
        "goodput_per_s": round(every.goodput_per_s, 2),
        "good_share": round(every.good_share, 4),
        "late": every.late,
        "slow": every.slow,
        "requests": every.requests,
        "answered": every.answered,
        "ttft_p50_s": every.first_token.p50,
        "ttft_p99_s": every.first_token.p99,
        "hit_rate": round(every.hit_rate, 4),
        "engine_preemptions": point.measures.engine_preemptions,
        "evictions": point.measures.evictions,
    }


def compared(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Per load: the best peer, and our goodput over its; nothing where only one side was run."""
    lines: list[dict[str, object]] = []
    if not {OURS} < {str(each["policy"]) for each in rows}:
        return lines
    for load in dict.fromkeys(str(each["load"]) for each in rows):
        at = [each for each in rows if each["load"] == load]
        ours = next(each for each in at if each["policy"] == OURS)
        best = max((each for each in at if each["policy"] != OURS), key=lambda each: float(str(each["goodput_per_s"])))
        lines.append({
            "load": load,
            "best_peer": best["policy"],
            "best_peer_share": best["good_share"],
            "our_share": ours["good_share"],
            "ratio": round(float(str(ours["goodput_per_s"])) / max(float(str(best["goodput_per_s"])), 1e-9), 3),
        })  # fmt: skip
    return lines


def show(executors: int, rows: Sequence[Mapping[str, object]], console: Console) -> None:
    """The tables of one size."""
    loads = list(dict.fromkeys(str(each["load"]) for each in rows))
    offered = {str(each["load"]): each["offered_per_s"] for each in rows}
    table = Table(title=f"{executors} executors: share within the SLO (p99 TTFT in s, hit rate)")
    table.add_column("policy")
    for load in loads:
        table.add_column(f"{load}: {offered[load]}/s", justify="right")
    for policy in dict.fromkeys(str(each["policy"]) for each in rows):
        cells = [each for each in rows if each["policy"] == policy]
        table.add_row(policy, *(f"{c['good_share']:.1%} ({c['ttft_p99_s']:.1f}, {c['hit_rate']:.2f})" for c in cells))
    console.print(table)
    lines = compared(rows)
    if not lines:
        return
    for line in lines:
        console.print("  {load}: {ratio} × the best peer, {best_peer}".format(**line))
    knee = next((line for line in lines if float(str(line["best_peer_share"])) < HELD), lines[-1])
    console.print(f"knee: {knee['load']}, {knee['ratio']} ×")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--executors", default="16,64,256")
    parser.add_argument("--policies", default=",".join([OURS, *(name for name in NAMES if name != OURS)]))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    console = Console(width=160)
    document: dict[str, object] = {
        "machine": {"platform": platform.platform(), "python": platform.python_version()},
        "trace": arguments.trace.name,
        "step_tokens": STEP_TOKENS,
        "gpu": "h100-8b",
        "sizes": {},
    }
    if arguments.out and arguments.out.exists():
        document = json.loads(arguments.out.read_text())
    for size in map(int, arguments.executors.split(",")):
        points = sweep(arguments.trace, size, arguments.policies.split(","), arguments.jobs, console)
        rows = [row(point) for point in points]
        show(size, rows, console)
        document["sizes"][str(size)] = {"points": rows, "compared": compared(rows)}  # type: ignore[index]
        if arguments.out:
            arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
