"""A soak as one picture, with Matplotlib's Agg backend, which needs no display."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from tests.bench.soak.judge import WARM_UP
from tests.bench.soak.result import Result

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#9aa2aa", "#7a5c2e")
"""Most of Okabe and Ito ("Color Universal Design", 2008), which people with any color vision tell apart."""
Numbers = npt.NDArray[np.float64]
STYLES = ("-", "--", ":", "-.")
WIDTH, HEIGHT, DPI = 13.0, 10.5, 110


def picture(result: Result) -> Picture:
    """Memory, latency, CPU, and what is held, over the minutes of the run."""
    drawn = Picture(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(3, 2, sharex=True)
    minutes = np.array(result.at_s) / 60
    names = sorted(result.processes)
    for place, series, title in (
        (axes[0][0], "own_mb", "Memory of its own (MB)"),
        (axes[1][0], "cores", "CPU (cores)"),
    ):
        for name in names:
            color, style = _look(name, names)
            place.plot(minutes, _numbers(result.processes[name][series]), style, color=color, label=name)
        _finish(place, title, minutes)
    axes[0][0].set_ylim(top=1.5 * axes[0][0].get_ylim()[1])
    axes[0][0].legend(fontsize=7, ncols=4, loc="upper left")
    for door, color in (("session", COLORS[0]), ("generate", COLORS[1])):
        for share, style in (("p50", "-"), ("p99", ":")):
            values = _numbers(result.load.get(f"first_{door}_{share}_ms", []))
            axes[0][1].plot(minutes, values, style, color=color, label=f"{door}, {share}")
    _finish(axes[0][1], "First token (ms)", minutes, log=True)
    axes[0][1].legend(fontsize=8)
    for share, style in (("p50", "-"), ("p99", ":")):
        axes[1][1].plot(
            minutes, _numbers(result.load.get(f"whole_{share}_ms", [])), style, color=COLORS[0], label=share
        )
    _finish(axes[1][1], "Whole answer of 32 tokens (ms)", minutes, log=True)
    axes[1][1].legend(fontsize=8)
    for number, series in enumerate(("files", "tasks", "threads")):
        total = np.nansum([_numbers(result.processes[name][series]) for name in names], axis=0)
        axes[2][0].plot(minutes, total, color=COLORS[number], label=series)
    _finish(axes[2][0], "Held by all processes", minutes)
    axes[2][0].legend(fontsize=8)
    axes[2][1].plot(minutes, _numbers(result.load.get("requests_per_s", [])), color=COLORS[0], label="requests/s")
    axes[2][1].plot(minutes, _numbers(result.load.get("in_flight", [])), color=COLORS[2], label="in flight")
    machine = 100 * _numbers(result.load.get("machine_cores", []))
    axes[2][1].plot(minutes, machine, color=COLORS[6], label="machine (% of a core)")
    _finish(axes[2][1], "Load", minutes)
    axes[2][1].legend(fontsize=8)
    for place in axes[2]:
        place.set_xlabel("minutes")
    return drawn


def _look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """A color for each service, a style for each of its processes."""
    services = sorted({each.rpartition("-")[0] or each for each in names})
    service, _, number = name.rpartition("-")
    which = int(number) - 1 if service and number.isdigit() else 0
    return COLORS[services.index(service or name) % len(COLORS)], STYLES[which % len(STYLES)]


def _numbers(values: Sequence[float | None]) -> Numbers:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _finish(axes: Axes, title: str, minutes: Numbers, *, log: bool = False) -> None:
    axes.set_title(title, fontsize=11)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if len(minutes):
        axes.axvspan(minutes[0], minutes[0] + WARM_UP * (minutes[-1] - minutes[0]), color="#9aa2aa", alpha=0.15, lw=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
