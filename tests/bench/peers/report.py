"""The results as Markdown tables and one picture. `python -m tests.bench.peers.report FILE.json [PICTURE.png]`

Every figure is a median over rounds. A run beside which others used the machine counts only where none was quieter.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.peers.plot import picture
from tests.bench.peers.results import (
    DISTURBED,
    Figure,
    Record,
    in_ms,
    is_ours,
    is_peer,
    median,
    of_group,
    per_request,
    per_second,
    per_token,
    quietest,
    targets,
    with_engines,
)

GIVEN = 0.95
"""Of the tokens offered: with fewer, CPU per token is that of a system that is not done with its first requests."""
COLUMNS: dict[str, tuple[Figure | tuple[Figure, Figure], str]] = {
    "CPU µs/token": (per_token, ",.1f"),
    "with engines": (with_engines, ",.1f"),
    "CPU µs/request": (per_request, ",.0f"),
    "tokens/s": (per_second("tokens"), ",.0f"),
    "requests/s": (per_second("done"), ",.0f"),
    "first token p50, p99 (ms)": ((in_ms("first_us", "p50"), in_ms("first_us", "p99")), ",.2f"),
    "between p50, p99 (ms)": ((in_ms("gap_us", "p50"), in_ms("gap_us", "p99")), ",.1f"),
    "others' cores": (lambda run: float(run["foreign"]), ".2f"),
}


def markdown(results: Record) -> str:
    """All tables."""
    disturbed = sum(run["foreign"] > DISTURBED for run in results["runs"])
    lines = [
        f"{results['machine']}; {results['rounds']} round(s). Beside {disturbed} of {len(results['runs'])} runs others "
        f"used more than {DISTURBED:g} cores. \\*: no run was quieter. †: fewer than {GIVEN:.0%} of the tokens came "
        "that the engines' pace allows.",
        "",
    ]
    for phase in dict.fromkeys(run["phase"] for run in results["runs"]):
        lines += [f"**{phase}**: {results['phases'][phase]}", "", *_phase(results, phase), ""]
    lines += [*_parts(results), "", *_idle(results), "", *_deaths(results), "", *_verdict(results)]
    return "\n".join([*lines, *(f"- FAILED: {text}" for text in results["failures"])])


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _phase(results: Record, phase: str) -> Iterator[str]:
    yield from _head("", *COLUMNS, "failed")
    for label, runs in targets(results, phase).items():
        mark = "" if all(run["foreign"] <= DISTURBED for run in quietest(runs)) else " \\*"
        if median(runs, per_second("tokens")) < GIVEN * results["offered"][phase]:
            mark += " †"
        cells = [
            ", ".join(format(median(runs, of), form) for of in (figures if isinstance(figures, tuple) else [figures]))
            for figures, form in COLUMNS.values()
        ]
        yield _row(label + mark, *cells, sum(run["failed"] for run in runs))


def _parts(results: Record) -> Iterator[str]:
    """Of systems that are several processes."""
    for name in (name for name, each in results["systems"].items() if len(each["charged"]) > 1):
        runs = [run for run in results["runs"] if run["system"] == name]
        if not runs:
            continue
        groups = list(runs[0]["cpu_s"])
        yield from _head(f"{name}: CPU by part", "per", *groups)
        for phase in dict.fromkeys(run["phase"] for run in runs):
            per, what = ("token", "tokens") if results["offered"][phase] else ("request", "done")
            for label, found in targets({"runs": runs}, phase).items():
                cells = [median(found, of_group(group, what)) for group in groups]
                yield _row(f"{label}, {phase}", per, *(f"{cell:,.1f}" for cell in cells))


def _idle(results: Record) -> Iterator[str]:
    if not results["idle"]:
        return
    yield from _head(
        "idle", "memory (MB)", "with engines and the rest", "CPU (% of a core)", "with the rest", "up in (s)"
    )
    for name in dict.fromkeys(each["system"] for each in results["idle"]):
        charged = set(results["systems"][name]["charged"])
        cells = []
        for what, groups, factor, form in (
            ("memory_mb", charged, 1, ".0f"),
            ("memory_mb", None, 1, ".0f"),
            ("cores", charged, 100, ".1f"),
            ("cores", None, 100, ".1f"),
        ):
            sums = [
                sum(value for group, value in each[what].items() if groups is None or group in groups)
                for each in results["idle"]
                if each["system"] == name
            ]
            cells.append(format(statistics.median(sums) * factor, form))
        starts = [each["start_s"] for each in results["idle"] if each["system"] == name]
        yield _row(name, *cells, format(statistics.median(starts), ".1f"))


def _deaths(results: Record) -> Iterator[str]:
    if not results["deaths"]:
        return
    yield from _head(
        "one of two engines killed", "complete", "wrong", "failed", "cut", "longest pause (ms)", "of the next answered",
        "slowest of them (ms)", "told",
    )  # fmt: skip
    for each in results["deaths"]:
        whole = f"{each['complete']} of {each['streams']}{'' if each['checked'] else ' (by count)'}"
        later = f"{each['later_answered']} of {each['later']}"
        told = each["error"].replace("|", "/").replace("\n", " ")[:100]
        yield _row(
            each["system"], whole, each["wrong"], each["failed"], each["cut"], format(each["gap_ms"], ",.0f"), later,
            format(each["later_slowest_ms"], ",.0f"), told,
        )  # fmt: skip


def _verdict(results: Record) -> Iterator[str]:
    """Headrace's doors over the cheapest peer, and over Dynamo."""
    for phase, what, of in (("paced256", "CPU per token", per_token), ("short64", "CPU per request", per_request)):
        found = {label: median(runs, of) for label, runs in targets(results, phase).items()}
        found |= {f"{label} (quick)": median(runs, of) for label, runs in targets(results, f"{phase}_quick").items()}
        peers = {label: value for label, value in found.items() if is_peer(label) and value > 0}
        if not peers:
            continue
        best = min(peers, key=lambda label: peers[label])
        for ours in filter(is_ours, found):
            ratios = [
                f"{found[ours] / peers[label]:.2f} times {label}'s"
                for label in dict.fromkeys([best, "dynamo"])
                if label in peers
            ]
            yield f"- {phase}, {what}: {ours} needs {', '.join(ratios)}."


def main() -> None:
    """Entry point."""
    results = json.loads(Path(sys.argv[1]).read_text())
    print(markdown(results))
    if len(sys.argv) > 2:
        picture(results).savefig(sys.argv[2])


if __name__ == "__main__":
    main()
