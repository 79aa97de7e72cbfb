"""Reading the results again: medians over rounds, by what the load was pointed at. Pure."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

DISTURBED = 0.1
"""Cores used by others from which a run counts as disturbed."""

Record = dict[str, Any]
"""A Result, an Idle or a Death from the file; or the whole file."""

Figure = Callable[[Record], float]


def quietest(runs: Sequence[Record]) -> list[Record]:
    """The undisturbed ones; without any, the least disturbed one."""
    quiet = [run for run in runs if run["foreign"] <= DISTURBED]
    return quiet or sorted(runs, key=lambda run: float(run["foreign"]))[:1]


def median(runs: Sequence[Record], of: Figure) -> float:
    """Of the runs that count."""
    return statistics.median(of(run) for run in quietest(runs))


def targets(results: Record, phase: str) -> dict[str, list[Record]]:
    """The runs of a phase, by system, or by system and door where it has several."""
    found: dict[str, list[Record]] = {}
    for run in results["runs"]:
        if run["phase"] == phase:
            label = run["system"] if run["door"] == "http" else f"{run['system']} {run['door']}"
            found.setdefault(label, []).append(run)
    return found


def is_ours(label: str) -> bool:
    """Headrace through any door."""
    return label.startswith("headrace")


def is_peer(label: str) -> bool:
    """Neither Headrace nor the engine alone."""
    return not is_ours(label) and label != "direct"


def per_token(run: Record) -> float:
    """CPU µs of what is charged."""
    return float(run["cpu_us_per_token"])


def per_request(run: Record) -> float:
    """CPU µs of what is charged."""
    return float(run["cpu_us_per_request"])


def with_engines(run: Record) -> float:
    """CPU µs per token of the system and its engines."""
    used: dict[str, float] = run["cpu_s"]
    return (sum(used.values()) - used.get("rest", 0.0)) * 1e6 / max(int(run["tokens"]), 1)


def of_group(group: str, per: str) -> Figure:
    """CPU µs of a group of processes, per one of `done` or `tokens`."""
    return lambda run: float(run["cpu_s"][group]) * 1e6 / max(int(run[per]), 1)


def in_ms(what: str, share: str) -> Figure:
    """A quantile ("p50", "p90", "p99") of `first_us`, `gap_us` or `whole_us`."""
    return lambda run: float(run[what][share]) / 1000


def per_second(what: str) -> Figure:
    """The rate of `done` or `tokens`."""
    return lambda run: float(run[what]) / float(run["seconds"])
