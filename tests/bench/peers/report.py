"""The results as Markdown tables and one picture. `python -m tests.bench.peers.report FILE.json [PICTURE.png]`

Every figure is a median over rounds. A run beside which others used the machine counts only where none was quieter.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DISTURBED = 0.1
"""Cores used by others from which a run counts as disturbed."""
OURS, PEERS, NEITHER = "#0072B2", "#E69F00", "#9aa2aa"
Run = dict[str, Any]


def markdown(results: Run) -> str:
    """All tables."""
    lines = [f"{results['machine']}; {results['rounds']} round(s). {_disturbance(results)}", ""]
    for phase in dict.fromkeys(run["phase"] for run in results["runs"]):
        lines += [f"**{phase}**: {results['phases'][phase]}", "", *_table(results, phase), ""]
    return "\n".join([*lines, *_idle(results), "", *_deaths(results), "", *_verdict(results)])


def quietest(runs: Sequence[Run]) -> list[Run]:
    """The undisturbed ones; without any, the least disturbed one."""
    quiet = [run for run in runs if run["foreign"] <= DISTURBED]
    return quiet or sorted(runs, key=lambda run: float(run["foreign"]))[:1]


def median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    """Of the runs that count."""
    return statistics.median(of(run) for run in quietest(runs))


def targets(results: Run, phase: str) -> dict[str, list[Run]]:
    """The runs of a phase by what the load was pointed at: a system, or one of its doors."""
    found: dict[str, list[Run]] = {}
    for run in results["runs"]:
        if run["phase"] == phase:
            label = run["system"] if run["door"] == "http" else f"{run['system']} {run['door']}"
            found.setdefault(label, []).append(run)
    return found


def _table(results: Run, phase: str) -> Iterator[str]:
    yield (
        "| system | CPU µs/token | CPU µs/request | with its engine | tokens/s | requests/s | first token p50, p99 (ms) "
        "| between p50, p99 (ms) | failed | others' cores |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for label, runs in targets(results, phase).items():
        per = median(runs, lambda run: run["cpu_us_per_token"] / max(run["cpu_us_per_request"], 1e-9))
        whole = median(
            runs, lambda run: (sum(run["cpu_s"].values()) - run["cpu_s"].get("rest", 0.0)) / max(run["done"], 1)
        )
        mark = "" if all(run["foreign"] <= DISTURBED for run in quietest(runs)) else " \\*"
        yield (
            f"| {label}{mark} | {median(runs, lambda run: run['cpu_us_per_token']):,.1f} "
            f"| {median(runs, lambda run: run['cpu_us_per_request']):,.0f} | {whole * 1e6 * per:,.1f} µs/token "
            f"| {median(runs, lambda run: run['tokens'] / run['seconds']):,.0f} "
            f"| {median(runs, lambda run: run['done'] / run['seconds']):,.0f} | {_pair(runs, 'first_us')} "
            f"| {_pair(runs, 'gap_us')} | {sum(run['failed'] for run in runs)} "
            f"| {median(runs, lambda run: run['foreign']):.2f} |"
        )


def _pair(runs: Sequence[Run], name: str) -> str:
    return ", ".join(f"{median(runs, lambda run, at=at: run[name][at]) / 1000:,.2f}" for at in ("p50", "p99"))  # type: ignore[misc]


def _idle(results: Run) -> Iterator[str]:
    yield "| idle | memory (MB) | with engines and the rest | CPU (% of a core) |"
    yield "|---|---|---|---|"
    for name in dict.fromkeys(each["system"] for each in results["idle"]):
        runs = [each for each in results["idle"] if each["system"] == name]
        charged = results["systems"][name]["charged"]

        def of(what: str, groups: Sequence[str] | None, runs: Sequence[Run] = runs) -> float:
            return statistics.median(
                sum(value for group, value in run[what].items() if groups is None or group in groups) for run in runs
            )

        yield (
            f"| {name} | {of('memory_mb', charged):,.0f} | {of('memory_mb', None):,.0f} "
            f"| {of('cores', charged) * 100:.1f} |"
        )


def _deaths(results: Run) -> Iterator[str]:
    if not results["deaths"]:
        return
    yield "| one of two engines killed | complete | wrong | failed | cut | longest pause (ms) | the next 20 | slowest (ms) |"
    yield "|---|---|---|---|---|---|---|---|"
    for each in results["deaths"]:
        yield (
            f"| {each['system']} | {each['complete']} of {each['streams']}{'' if each['checked'] else ' (by count)'} "
            f"| {each['wrong']} | {each['failed']} | {each['cut']} | {each['gap_ms']:,.0f} "
            f"| {each['later_answered']} of {each['later']} | {each['later_slowest_ms']:,.0f} |"
        )


def _verdict(results: Run) -> Iterator[str]:
    """Headrace's doors over the cheapest peer."""
    for phase, what in (("paced256", "cpu_us_per_token"), ("short64", "cpu_us_per_request")):
        found = {label: median(runs, lambda run: run[what]) for label, runs in targets(results, phase).items()}  # noqa: B023
        peers = {label: value for label, value in found.items() if _color(label) == PEERS}
        if not peers:
            continue
        best = min(peers, key=lambda label: peers[label])
        for label, value in found.items():
            if _color(label) == OURS:
                yield f"- {phase}, {what}: {label} is {value / peers[best]:.2f} times {best}."


def _disturbance(results: Run) -> str:
    runs = results["runs"]
    disturbed = sum(run["foreign"] > DISTURBED for run in runs)
    return f"{disturbed} of {len(runs)} runs had more than {DISTURBED:g} cores used by others (\\*: no quieter one)."


def _color(label: str) -> str:
    return OURS if label.startswith("headrace") else NEITHER if label == "direct" else PEERS


def picture(results: Run) -> Figure:
    """CPU and the first token, side by side; logarithmic, for they differ by factors."""
    panels = [
        ("paced256", "CPU per streamed token (µs)", lambda run: run["cpu_us_per_token"]),
        ("short64", "CPU per request of 8 tokens (µs)", lambda run: run["cpu_us_per_request"]),
        ("first", "First token, one request at a time, p50 (ms)", lambda run: run["first_us"]["p50"] / 1000),
    ]
    panels = [panel for panel in panels if targets(results, panel[0])]
    figure = Figure(figsize=(5.2 * len(panels), 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (phase, title, of) in enumerate(panels):
        _bars(figure.add_subplot(1, len(panels), number + 1), title, targets(results, phase), of)
    return figure


def _bars(axes: Axes, title: str, runs: dict[str, list[Run]], of: Callable[[Run], float]) -> None:
    values = sorted(((median(each, of), label) for label, each in runs.items()), reverse=True)
    places = range(len(values))
    axes.barh(places, [value for value, _ in values], color=[_color(label) for _, label in values], height=0.7)
    axes.set_yticks(places, [label for _, label in values])
    axes.set_xscale("log")
    axes.set_title(title, fontsize=11)
    for place, (value, _) in zip(places, values, strict=True):
        axes.annotate(f" {value:,.3g}", (value, place), va="center", fontsize=9)
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Entry point."""
    results = json.loads(Path(sys.argv[1]).read_text())
    print(markdown(results))
    if len(sys.argv) > 2:
        picture(results).savefig(sys.argv[2])


if __name__ == "__main__":
    main()
