"""How the cost goes with the size, as one picture, with Matplotlib's Agg backend, which needs no display."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from tests.bench.scale.points import FIRM

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Of Okabe and Ito ("Color Universal Design", 2008), which people with any color vision tell apart."""
MARKS = "osD^vPX"
WIDTH, HEIGHT, DPI = 9.5, 5.5, 130


def picture(curves: Mapping[str, Mapping[int, float]]) -> Picture:
    """A line for each axis that was measured: cost against the first point's, both logarithmic."""
    drawn = Picture(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    axes.axhspan(1 - FIRM, 1 + FIRM, color="#9aa2aa", alpha=0.25, lw=0, label=f"±{FIRM:.0%}")
    for number, (title, curve) in enumerate(curves.items()):
        if not curve:
            continue
        first = next(iter(curve.values()))
        axes.plot(
            [*curve], [cost / first for cost in curve.values()], marker=MARKS[number], color=COLORS[number], label=title
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(
        "CPU of admission, router, batcher and KV-cache manager per token, or request, against the first point",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn
