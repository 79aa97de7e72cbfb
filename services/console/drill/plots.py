"""Draws a drill with Matplotlib: its Agg backend, which needs no display, and the fonts that it brings. Pure otherwise.

Colors are those of Okabe and Ito ("Color Universal Design", 2008), which people with any color vision tell apart. All
plots share their time axis, and show the level as a shade behind them: the deeper, the more rungs are in force.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from services.console.drill.values import Result, Second

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
GREY = "#6b737c"
WIDTH, HEIGHT, DPI = 11.0, 3.7, 150
LEAST_SATURATION = 0.01
"""Below it a logarithmic axis would show nothing but noise."""
LABEL = 0.035
"""Of the height of a plot, for a line of text."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture and what it shows."""

    name: str
    """Of its file, without ".png"."""
    title: str
    caption: str
    png: bytes


def draw(result: Result) -> list[Plot]:
    """All plots of a drill that has samples."""
    plots = [_saturation(result), _parts(result), _requests(result), _first_tokens(result)]
    if any(second.probe_tokens is not None for second in result.per_second):
        plots.append(_tokens(result))
    return plots


def _saturation(result: Result) -> Plot:
    figure, axes = _panel(result, "Saturation", HEIGHT + 0.9)
    times = [sample.at for sample in result.samples]
    values = [max(sample.saturation, LEAST_SATURATION) for sample in result.samples]
    axes.plot(times, values, color=BLUE, linewidth=1.6, label="saturation")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    top = max([*values, *(rung.at for rung in result.order.ladder)]) * 1.5
    axes.set_ylim(LEAST_SATURATION, top)
    below = -inf
    for rung in result.order.ladder:
        axes.axhline(rung.at, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        height = log(max(rung.at, LEAST_SATURATION) / LEAST_SATURATION) / log(top / LEAST_SATURATION)
        below = max(height, below + LABEL)  # no label on another
        axes.annotate(
            f"{rung.name} {rung.at:g}", (1.0, below), xycoords="axes fraction", xytext=(4, 0),
            textcoords="offset points", color=GREY, fontsize=8, va="center", ha="left", annotation_clip=False,
        )  # fmt: skip
    steps = axes.twinx()
    steps.step(times, [sample.level for sample in result.samples], where="post", color=ORANGE, linewidth=1.8)
    axes.plot([], [], color=ORANGE, linewidth=1.8, label="level (of " + f"{len(result.order.ladder)})")
    steps.set_ylim(0, len(result.order.ladder) * 1.06)
    steps.set_yticks([])
    steps.spines[["top", "right"]].set_visible(False)
    caption = (
        "Dotted: where each rung begins. The level rises at once and falls a rung at a time, each after "
        f"{result.order.recover_s:g} s below its rung."
    )
    return _plot(figure, axes, "saturation", "Saturation, and the rungs in force", caption)


def _parts(result: Result) -> Plot:
    figure, axes = _panel(result, "Share")
    times = [sample.at for sample in result.samples]
    axes.plot(times, [sample.wait for sample in result.samples], color=BLUE, linewidth=1.5, label="wait / promise")
    axes.plot(
        times,
        [s.blocks for s in result.samples],
        color=GREEN,
        linewidth=1.5,
        linestyle=(0, (5, 1.5)),
        label="blocks reserved",
    )
    axes.plot(
        times,
        [s.refused for s in result.samples],
        color=ORANGE,
        linewidth=1.5,
        linestyle=(0, (1.2, 1.2)),
        label="refused",
    )
    if any(sample.deferred for sample in result.samples):
        deferred = [sample.deferred for sample in result.samples]
        axes.plot(
            times,
            deferred,
            color=PINK,
            linewidth=1.5,
            linestyle=(0, (5, 1.5, 1.2, 1.5)),
            label="wait of async works / promise",
        )
    axes.set_ylim(bottom=0)
    caption = (
        "What the saturation is made of, as the batchers measure it. A full cache alone is none: see "
        "docs/degradation.md."
    )
    return _plot(figure, axes, "parts", "Waits, blocks and refusals", caption)


def _requests(result: Result) -> Plot:
    figure, axes = _panel(result, "Requests sent in this second")
    times = [second.at for second in result.per_second]
    counts: list[tuple[str, str, list[int]]] = [
        ("answered", GREEN, [second.answered for second in result.per_second]),
        ("refused", ORANGE, [second.refused for second in result.per_second]),
        ("failed", "#000000", [second.failed for second in result.per_second]),
        ("without an end", "#c4cad0", [_open(second) for second in result.per_second]),
    ]
    shown = [each for each in counts if any(each[2])]
    if shown:
        axes.stackplot(
            times, [each[2] for each in shown], labels=[each[0] for each in shown],
            colors=[each[1] for each in shown], step="post", alpha=0.85, linewidth=0,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    return _plot(figure, axes, "requests", "What became of the requests", "By the second in which they were sent.")


def _open(second: Second) -> int:
    return second.sent - second.answered - second.refused - second.failed


def _first_tokens(result: Result) -> Plot:
    figure, axes = _panel(result, "Time to first token (s)")
    for label, color, dash, value in (
        ("median", BLUE, "-", [second.first_p50_s for second in result.per_second]),
        ("95 of 100", SKY, (0, (5, 1.5)), [second.first_p95_s for second in result.per_second]),
    ):
        known = [(s.at, v) for s, v in zip(result.per_second, value, strict=True) if v is not None]
        axes.plot(
            [at for at, _ in known], [v for _, v in known], color=color, linestyle=dash, linewidth=1.6, label=label
        )
    axes.set_ylim(bottom=0)
    caption = "Of the requests that were answered, by the second in which they were sent."
    return _plot(figure, axes, "first-token", "Time to first token", caption)


def _tokens(result: Result) -> Plot:
    figure, axes = _panel(result, "Tokens of an answer")
    rows: list[tuple[str, str, str, Sequence[float | None]]] = [
        ("probes", BLUE, "o", [second.probe_tokens for second in result.per_second]),
        ("protected tenant", GREEN, "^", [second.spared_tokens for second in result.per_second]),
    ]
    for label, color, marker, values in rows:
        known = [(s.at, v) for s, v in zip(result.per_second, values, strict=True) if v is not None]
        if known:
            axes.plot(
                [at for at, _ in known], [v for _, v in known], color=color, marker=marker, linestyle="none",
                markersize=5, label=label,
            )  # fmt: skip
    axes.set_ylim(0, 1.1 * result.order.probe_tokens)
    caption = f"Probes ask for {result.order.probe_tokens} tokens: more than the rungs leave them."
    return _plot(figure, axes, "tokens", "Lengths of answers", caption)


def _panel(result: Result, label: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(True, color="#d9dde2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("Time (s)", fontsize=10.5)
    axes.set_ylabel(label, fontsize=10.5)
    axes.xaxis.set_major_locator(MaxNLocator(12))
    axes.set_xlim(0, max((sample.at for sample in result.samples), default=1.0))
    most = max(len(result.order.ladder), 1)
    for one, two in pairwise(result.samples):
        if one.level:
            axes.axvspan(one.at, two.at, color=ORANGE, alpha=0.03 + 0.15 * one.level / most, linewidth=0, zorder=0)
    return figure, axes


def _plot(figure: Figure, axes: Axes, name: str, title: str, caption: str) -> Plot:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, fontsize=9.5, handlelength=2.4)
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return Plot(name, title, caption, out.getvalue())
