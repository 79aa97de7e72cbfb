"""What was measured, read again: medians over rounds, tables in Markdown, and what is not flat. Pure.

python -m tests.bench.scale.report FILE.json [PICTURE.png]
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bench.scale.model import NAMES, Cost, Load, fit
from tests.bench.scale.plot import picture
from tests.bench.scale.points import AXES, FIRM, TOKENS, Axis

Record = dict[str, Any]
SERVING = ("admission", "router", "batcher", "kvcache")
DISTURBED = 0.15
"""Cores used by others from which a run counts only when no other is there."""
ANSWERED = 0.5
"""Of the tokens that engines offer: a run with fewer measured how a mesh starts, or starves."""
BEYOND = (64, 128, 256, 512, 1024)
BEYOND_FLIGHT, BEYOND_STEP_S = 64, 0.02


def runs_of(results: Record, axis: Axis) -> dict[int, list[Record]]:
    """The runs that count, by value: the undisturbed ones, or without any the least disturbed one."""
    found: dict[int, list[Record]] = {}
    for run in results["runs"]:
        if run["axis"] == axis.name and run["tokens_per_s"] >= ANSWERED * run["offered"] and run["requests_per_s"]:
            found.setdefault(run["value"], []).append(run)
    return {value: _quietest(found[value]) for value in sorted(found)}


def _quietest(runs: Sequence[Record]) -> list[Record]:
    quiet = [run for run in runs if run["foreign"] <= DISTURBED]
    return quiet or sorted(runs, key=lambda run: float(run["foreign"]))[:1]


def cost_us(run: Record, services: Sequence[str], per: str) -> float:
    """CPU µs of these services per one of "tokens" or "requests"."""
    cores = sum(float(run["cores"][name]) for name in services)
    return cores * 1e6 / float(run[f"{per}_per_s"])


def median(runs: Sequence[Record], of: Callable[[Record], float]) -> float:
    """Over rounds."""
    return statistics.median(of(run) for run in runs)


def curve(results: Record, axis: Axis) -> dict[int, float]:
    """The summed cost by value."""
    found = runs_of(results, axis)
    return {value: median(runs, lambda run: cost_us(run, SERVING, axis.per)) for value, runs in found.items()}


def markdown(results: Record) -> str:
    """All tables."""
    lines = [results["machine"], ""]
    for axis in AXES.values():
        if found := runs_of(results, axis):
            lines += [*_table(results, axis, found), "", _flatness(axis, curve(results, axis)), ""]
    return "\n".join([*lines, *_left_out(results), "", *_memory(results), "", *_model(results)])


def _left_out(results: Record) -> Iterator[str]:
    kept = {id(run) for axis in AXES.values() for runs in runs_of(results, axis).values() for run in runs}
    starved = [run for run in results["runs"] if run["tokens_per_s"] < ANSWERED * run["offered"]]
    for run in starved:
        came = f"{run['tokens_per_s']:,.0f} of {run['offered']:,.0f} tokens/s came"
        point = f"{AXES[run['axis']].title}: {run['value']:,}, round {run['round'] + 1}"
        yield f"Left out: {point}: {came}, while others used {run['foreign']:.2f} cores."
    if disturbed := len(results["runs"]) - len(kept) - len(starved):
        yield f"Left out: {disturbed} runs that others disturbed, where quieter ones are there."


def _table(results: Record, axis: Axis, found: dict[int, list[Record]]) -> Iterator[str]:
    unit = axis.per[:-1]
    yield (
        f"| {axis.title} | {unit}s/s | CPU µs/{unit}: {' | '.join(SERVING)} | sum | of the first | beyond idle "
        "| of the first | memory | |"
    )
    yield "|---" * (len(SERVING) + 8) + "|"
    first = first_net = 0.0
    for value, runs in found.items():
        parts = [median(runs, lambda run, name=name: cost_us(run, (name,), axis.per)) for name in SERVING]  # type: ignore[misc]
        total = median(runs, lambda run: cost_us(run, SERVING, axis.per))
        net = total - _idle_us(results, runs, axis)
        first, first_net = first or total, first_net or net
        memory = median(runs, lambda run: sum(run["memory_mb"][name] for name in SERVING))
        cells = [f"{value:,}", f"{median(runs, lambda run: run[f'{axis.per}_per_s']):,.0f}"]
        cells += [
            *map(_us, parts),
            _us(total),
            f"{total / first:.2f}",
            _us(net),
            f"{net / first_net:.2f}",
            f"{memory:.0f} MB",
            _remark(runs),
        ]
        yield "| " + " | ".join(cells) + " |"


def _idle_us(results: Record, runs: Sequence[Record], axis: Axis) -> float:
    """What the same mesh uses when nobody asks anything, per token or request of these runs."""
    instances = runs[0]["value"] if axis.name == "instances" else 1
    alike = [
        one for one in results["idle"] if (one["instances"], one["executors"]) == (instances, runs[0]["executors"])
    ]
    if not alike:
        return 0.0
    cores = median(alike, lambda one: sum(one["cores"][name] for name in SERVING))
    return cores * 1e6 / median(runs, lambda run: run[f"{axis.per}_per_s"])


def _us(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _remark(runs: Sequence[Record]) -> str:
    remarks = []
    if failed := sum(run["failed"] for run in runs):
        remarks.append(f"{failed} failed")
    if any(run["tokens_per_s"] < 0.95 * run["offered"] for run in runs):
        remarks.append("did not keep up")
    if any(run["client_cores"] + run["cores"].get("engine", 0.0) > 0.9 for run in runs):
        remarks.append("load generator and engines fill their core")
    if (foreign := max(run["foreign"] for run in runs)) > DISTURBED:
        remarks.append(f"disturbed: others used {foreign:.2f} cores")
    return "; ".join(remarks)


def _flatness(axis: Axis, costs: dict[int, float]) -> str:
    first = next(iter(costs.values()))
    grows = [f"{value:,}: {cost / first:.2f}" for value, cost in costs.items() if cost > first * (1 + FIRM)]
    falls = [f"{value:,}: {cost / first:.2f}" for value, cost in costs.items() if cost < first * (1 - FIRM)]
    told = [f"grows ({', '.join(grows)})" if grows else "", f"falls ({', '.join(falls)})" if falls else ""]
    return f"{axis.title}: " + (" and ".join(filter(None, told)) or f"flat within {FIRM:.0%}") + "."


def _memory(results: Record) -> Iterator[str]:
    rows: dict[tuple[int, int], list[Record]] = {}
    for one in results["idle"]:
        rows.setdefault((one["instances"], one["executors"]), []).append(one)
    if not rows:
        return
    yield (
        "| idle: instances | executors | "
        + " | ".join(f"{name} MB, ‰ of a core" for name in (*SERVING, "engine"))
        + " |"
    )
    yield "|---" * (len(SERVING) + 3) + "|"
    for (instances, executors), seen in sorted(rows.items()):
        cells = [
            f"{median(seen, lambda one, name=name: one['memory_mb'][name]):.0f}, "  # type: ignore[misc]
            f"{1000 * median(seen, lambda one, name=name: one['cores'][name]):.1f}"  # type: ignore[misc]
            for name in (*SERVING, "engine")
        ]
        yield f"| {instances} | {executors} | {' | '.join(cells)} |"


def costs(results: Record) -> dict[str, Cost]:
    """The model of each service, from meshes of one instance of each and engines at a pace, idle ones too."""
    loads: list[tuple[Load, Record]] = [
        (Load(run["executors"], run["executors"] / run["step_s"], run["tokens_per_s"], run["requests_per_s"]), run)
        for axis in AXES.values() if axis.name != "instances"
        for runs in runs_of(results, axis).values() for run in runs if run["step_s"]
    ]  # fmt: skip
    loads += [(Load(one["executors"], 0, 0, 0), one) for one in results["idle"] if one["instances"] == 1]
    try:
        return {name: fit([(load, max(run["cores"][name], 1e-5)) for load, run in loads]) for name in SERVING}
    except ValueError:
        return {}


def _model(results: Record) -> Iterator[str]:
    if not (found := costs(results)):
        return
    yield (
        "| model | "
        + " | ".join(f"µs per {name}{' and second' * (name in NAMES[:2])}" for name in NAMES)
        + " | error |"
    )
    yield "|---" * (len(NAMES) + 2) + "|"
    for service, cost in found.items():
        yield f"| {service} | " + " | ".join(f"{cost.us[name]:,.3g}" for name in NAMES) + f" | {cost.error:.0%} |"
    yield ""
    yield (
        f"| modelled: executors, {BEYOND_FLIGHT} in flight each, steps of {1000 * BEYOND_STEP_S:.0f} ms | tokens/s | "
        + " | ".join(f"{name}, cores" for name in SERVING) + " | µs/token |"
    )  # fmt: skip
    yield "|---" * (len(SERVING) + 3) + "|"
    for executors in BEYOND:
        load = Load.of(executors, BEYOND_FLIGHT, BEYOND_STEP_S, TOKENS)
        cores = [cost.cores(load) for cost in found.values()]
        cells = [f"{executors:,}", f"{load.tokens:,.0f}", *(f"{each:.2f}" for each in cores)]
        yield "| " + " | ".join([*cells, f"{sum(cores) * 1e6 / load.tokens:.1f}"]) + " |"


def main() -> None:
    """Entry point."""
    results = json.loads(Path(sys.argv[1]).read_text())
    print(markdown(results))
    if len(sys.argv) > 2:
        picture({axis.title: curve(results, axis) for axis in AXES.values()}).savefig(sys.argv[2])


if __name__ == "__main__":
    main()
