"""Draws a sweep with Matplotlib: its Agg backend, which needs no display, and the fonts that it brings. Pure otherwise.

Colors are those of Okabe and Ito ("Color Universal Design", 2008), which people with any color vision tell apart; each
policy has a marker and a dash pattern of its own, too. A policy looks the same in every plot.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from services.simulator.measure import Group, Slo
from services.simulator.points import CURVE_POINTS, Point

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 2)), (0, (2, 2)))
MOST_OVER_TIME = 3
"""Policies in the plot over time; more cannot be told apart."""
STRIPS = 150
WIDTH, HEIGHT, DPI = 6.4, 4.5, 170


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture and what it shows."""

    name: str
    """Of its file, without ".png"."""
    title: str
    caption: str
    png: bytes
    wide: bool = False


def draw(points: Sequence[Point], at_load: str, slo: Slo) -> list[Plot]:
    """All plots; those over time and the distribution are of the load of that name."""
    detail = [each for each in points if each.load.name == at_load]
    policies = list(dict.fromkeys(each.policy for each in points))
    found = [
        _goodput(points, policies),
        _first_token(points, policies, slo),
        _curves(detail, policies, slo, at_load),
        _gaps(points, policies, slo),
        _hits(points, policies),
        _waits(points, policies),
        _over_time(detail, policies, at_load),
    ]
    if any(each.service for each in detail):
        found.append(_service(detail, at_load))
    return found


def _goodput(points: Sequence[Point], policies: Sequence[str]) -> Plot:
    figure, axes = _panel("Offered load (requests/s)", "Goodput (requests/s)")
    most = max(each.measures.all.offered_per_s for each in points)
    least = min(each.measures.all.offered_per_s for each in points)
    axes.plot(
        [least, most], [least, most], color="#6b737c", linewidth=1, linestyle=(0, (2, 2)), zorder=1,
        label="all that is offered",
    )  # fmt: skip
    _lines(axes, points, policies, lambda group: group.goodput_per_s)
    axes.set_ylim(0, most * 1.12)
    caption = "Requests answered whole and within the SLO, per second. On the dotted line everything is."
    return _plot(figure, axes, "goodput", "Goodput against offered load", caption)


def _first_token(points: Sequence[Point], policies: Sequence[str], slo: Slo) -> Plot:
    figure, axes = _panel("Offered load (requests/s)", "p99 time to first token (s)")
    _log_seconds(axes, "y")
    _lines(axes, points, policies, lambda group: group.first_token.p99)
    _bound(axes, slo.first_token_s)
    caption = (
        "Of 100 answered requests, 99 had their first token by then. Refused ones have none: see the share "
        "answered. Long prompts may take longer than the SLO line says."
    )
    return _plot(figure, axes, "first-token", "p99 time to first token against offered load", caption)


def _gaps(points: Sequence[Point], policies: Sequence[str], slo: Slo) -> Plot:
    figure, axes = _panel("Offered load (requests/s)", "p99 time between tokens (ms)")
    _lines(axes, points, policies, lambda group: None if group.gap.p99 is None else 1000 * group.gap.p99)
    _bound(axes, 1000 * slo.gap_s)
    axes.set_ylim(bottom=0)
    caption = "The mean time between the tokens of a request; of 100 requests, 99 had less."
    return _plot(figure, axes, "gaps", "Time between tokens against offered load", caption)


def _hits(points: Sequence[Point], policies: Sequence[str]) -> Plot:
    figure, axes = _panel("Offered load (requests/s)", "Prompt tokens found in a cache (%)")
    _lines(axes, points, policies, lambda group: 100 * group.hit_rate)
    axes.set_ylim(bottom=0)
    caption = "Of the prompt tokens of answered requests, those that no engine had to compute."
    return _plot(figure, axes, "hit-rate", "Cache hits against offered load", caption)


def _waits(points: Sequence[Point], policies: Sequence[str]) -> Plot:
    figure, axes = _panel("Offered load (requests/s)", "p99 wait (s)")
    _log_seconds(axes, "y", floor=0.001)
    _lines(axes, points, policies, lambda group: None if group.waited.p99 is None else max(group.waited.p99, 0.001))
    caption = (
        "Time to first token less what an idle executor without cache takes: waiting in any queue, and sharing steps. "
        "Below 1 ms it is drawn at 1 ms."
    )
    return _plot(figure, axes, "wait", "Wait against offered load", caption)


def _curves(points: Sequence[Point], policies: Sequence[str], slo: Slo, at_load: str) -> Plot:
    figure, axes = _panel("Time to first token (s)", "Answered requests (%)")
    _log_seconds(axes, "x")
    share = np.linspace(0, 100, CURVE_POINTS)
    for each in points:
        if each.first_token_curve:
            index = policies.index(each.policy)
            axes.plot(
                np.maximum(each.first_token_curve, 1e-3), share, color=_color(index), linestyle=_dash(index),
                linewidth=1.9, label=each.policy,
            )  # fmt: skip
    axes.axvline(slo.first_token_s, color="#6b737c", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.set_ylim(0, 101)
    caption = f"At {at_load}: the share of answered requests whose first token came by then. Dotted: the SLO."
    return _plot(figure, axes, "first-token-distribution", "Distribution of the time to first token", caption)


def _over_time(points: Sequence[Point], policies: Sequence[str], at_load: str) -> Plot:
    figure = Figure(figsize=(2 * WIDTH, 6.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    rows: list[tuple[str, Callable[[Point], list[float]]]] = [
        ("Requests running", lambda point: [each.running for each in point.samples]),
        (
            "Requests waiting\n(all queues)",
            lambda point: [each.waiting + each.engine_waiting for each in point.samples],
        ),
        ("KV blocks held by\nrequests (%)", lambda point: [100 * each.used_blocks for each in point.samples]),
    ]
    best = sorted(points, key=lambda each: -each.measures.all.goodput_per_s)[:MOST_OVER_TIME]
    for axes, (label, values) in zip(panels, rows, strict=True):
        _dress(axes, "", label)
        for each in sorted(best, key=lambda each: policies.index(each.policy)):
            index = policies.index(each.policy)
            times, means = _strips([sample.at for sample in each.samples], values(each))
            axes.plot(times, means, color=_color(index), linestyle=_dash(index), linewidth=1.5, label=each.policy)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("Virtual time (s)")
    panels[-1].set_xlim(left=0)
    _legend(figure, panels[0], columns=7)
    only = f" Only the {len(best)} policies with the highest goodput." if len(best) < len(points) else ""
    caption = f"At {at_load}, over all executors. Blocks that are kept for their prefix alone are not in memory.{only}"
    return Plot("over-time", "Running, waiting and memory over time", caption, _png(figure), wide=True)


def _strips(times: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over stretches of time, so that no more than STRIPS points are drawn."""
    size = max(1, -(-len(times) // STRIPS))
    parts = [slice(start, start + size) for start in range(0, len(times), size)]
    return [float(np.mean(times[part])) for part in parts], [float(np.mean(values[part])) for part in parts]


def _service(points: Sequence[Point], at_load: str) -> Plot:
    shown = [each for each in points if each.service]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2 * WIDTH, 0.6 + 2.7 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes, each in zip(panels, shown, strict=False):
        _dress(axes, "", "")
        axes.set_title(each.policy, fontsize=10.5, loc="left")
        if each.service is None:
            continue
        for index, (tenant, rates) in enumerate(each.service.tenants.items()):
            axes.plot(each.service.at, rates, color=_color(index), linestyle=_dash(index), linewidth=1.4, label=tenant)
    panels[0].set_ylim(bottom=0)  # shared: when all lines are in
    panels[0].set_xlim(left=0)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for index, axes in enumerate(panels):
        axes.set_visible(index < len(shown))
        axes.tick_params(labelbottom=index + columns >= len(shown))
    figure.supxlabel("Virtual time (s)", fontsize=10.5)
    figure.supylabel("Service (weighted tokens/s)", fontsize=10.5)
    _legend(figure, panels[0], columns=8)
    caption = (
        f"At {at_load}: prompt tokens and twice the output tokens, over the tenant's weight. Tenants that compete "
        "should lie on each other; one that asks for less lies below."
    )
    return Plot("service", "Service of the tenants over time", caption, _png(figure), wide=True)


def _panel(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _dress(axes, x, y)
    return figure, axes


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.grid(True, color="#d9dde2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x, fontsize=10.5)
    axes.set_ylabel(y, fontsize=10.5)


def _lines(
    axes: Axes, points: Sequence[Point], policies: Sequence[str], value: Callable[[Group], float | None]
) -> None:
    for index, policy in enumerate(policies):
        own = sorted((each for each in points if each.policy == policy), key=lambda each: each.load.requests_per_s)
        pairs = [(each.measures.all.offered_per_s, value(each.measures.all)) for each in own]
        known = [(x, y) for x, y in pairs if y is not None]
        axes.plot(
            [x for x, _ in known], [y for _, y in known], color=_color(index), marker=MARKERS[index % len(MARKERS)],
            linestyle=_dash(index), linewidth=1.9, markersize=6, markeredgecolor="white", label=policy,
        )  # fmt: skip


def _log_seconds(axes: Axes, which: str, floor: float = 0.0) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"≤{value:g}" if floor and value <= floor else f"{value:g}")
    )
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_formatter(NullFormatter())


def _bound(axes: Axes, value: float) -> None:
    """The SLO, named beside the plot, where no line is."""
    axes.axhline(value, color="#6b737c", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        "SLO", (1.0, value), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
        color="#6b737c", fontsize=9, va="center", ha="left",
    )  # fmt: skip


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _dash(index: int) -> str | tuple[int, tuple[float, ...]]:
    return DASHES[index % len(DASHES)]


def _plot(figure: Figure, axes: Axes, name: str, title: str, caption: str) -> Plot:
    _legend(figure, axes, columns=4)
    return Plot(name, title, caption, _png(figure))


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Above the plot, where no line is."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9.5, columnspacing=1.2,
            handlelength=2.4,
        )  # fmt: skip


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
