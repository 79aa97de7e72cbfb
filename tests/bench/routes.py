"""What routes cost a router: µs per work and ns per work and frame, in one process, without gRPC.

    python -m tests.bench.routes [--rounds 15] [--out FILE.json]

Each case submits 64 works through the router's lane into a stage that does nothing, and passes 300 frames with a
token of each. Cases are interleaved; printed are medians. `named` is a work that names its model: what every work
costs without any route.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.work import Asked, Note, Outcome, Work
from services.router.policy import Canary, Cascade, Fallback, Hedge, RouteRules, Rule, Shadow
from tests.unit.routing import Routed, asked, catalogue

WORKS, FRAMES = 64, 300
RULES = tuple(Rule(f"rule {n}", "b", tenants=frozenset({f"nobody-{n}"}), min_prompt_tokens=n) for n in range(10))
FALLBACKS = (Fallback("b"), Fallback(wait_s=1.0))
CASES: dict[str, RouteRules] = {
    "named": RouteRules("r", "a"),
    "alias": RouteRules("r", "a"),
    "10 rules, canary, 2 fallbacks": RouteRules("r", "a", RULES, FALLBACKS, Canary("b", 0.0, frozenset({"x"}))),
    "hedged": RouteRules("r", "a", hedge=Hedge()),
    "cascade, streamed": RouteRules("r", "a", cascade=Cascade(("b", "a"), stream_first=True)),
    "shadow of each": RouteRules("r", "a", shadow=Shadow("b", 1.0, max_in_flight=WORKS)),
}


class Nobody:
    """A sink that keeps nothing."""

    def on_ready(self) -> None: ...
    def on_frame(self, frame: Frame) -> None: ...
    def on_note(self, work_id: int, note: Note) -> None: ...
    def on_outcome(self, work_id: int, outcome: Outcome) -> None: ...
    def on_broken(self, reason: str) -> None: ...


def measure(name: str, route: RouteRules) -> tuple[float, float]:
    """µs per work, and ns per work and frame."""
    it = Routed(known=catalogue(route))
    lane = it.router.open(Nobody())
    works = [_work(name, index) for index in range(WORKS)]
    began = time.perf_counter()
    for index, work in enumerate(works):
        lane.submit(index, work)
    submitted = time.perf_counter() - began
    numbers, sink = list(it.batcher.works), it.batcher.sink
    frames = [
        Frame.of(Draft(numbers, [step] * len(numbers), [1] * len(numbers), [5] * len(numbers)))
        for step in range(FRAMES)
    ]
    began = time.perf_counter()
    for frame in frames:
        sink.on_frame(frame)
    passed = time.perf_counter() - began
    return submitted / WORKS * 1e6, passed / FRAMES / len(numbers) * 1e9


def _work(name: str, index: int) -> Work:
    work = asked(index, prompt=64, tokens=10_000)
    work = replace(work, sampling=replace(work.sampling, max_tokens=1000))
    return replace(work, model="a", asked=None) if name == "named" else replace(work, asked=Asked("r", "a"))


def main() -> None:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, route in CASES.items():
            runs[name].append(measure(name, route))
    table = Table("case", "µs per work", "ns per work and frame")
    results = {}
    for name, found in runs.items():
        work, frame = (statistics.median(values) for values in zip(*found, strict=True))
        results[name] = {"us_per_work": round(work, 1), "ns_per_work_and_frame": round(frame)}
        table.add_row(name, f"{work:.1f}", f"{frame:.0f}")
    Console().print(table)
    if options.out is not None:
        machine = {"machine": platform.platform(), "python": platform.python_version(), "rounds": options.rounds}
        options.out.write_text(json.dumps({**machine, "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
