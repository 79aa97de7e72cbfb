"""The comparison as one picture, with Matplotlib's Agg backend, which needs no display."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from tests.bench.peers.results import Figure, Record, in_ms, is_ours, is_peer, median, per_request, per_token, targets

OURS, PEER, NEITHER = "#0072B2", "#E69F00", "#9aa2aa"
"""Of the colors of Okabe and Ito ("Color Universal Design", 2008), which people with any color vision tell apart."""
PANELS: tuple[tuple[str, str, Figure], ...] = (
    ("paced256", "CPU per streamed token (µs)", per_token),
    ("short64", "CPU per request of 8 tokens (µs)", per_request),
    ("first", "First token of a request alone, p50 (ms)", in_ms("first_us", "p50")),
)
WIDTH, HEIGHT, DPI = 5.4, 5.0, 130


def picture(results: Record) -> Picture:
    """A panel for each figure that was measured. Logarithmic: systems differ by factors."""
    panels = [(title, of, runs) for phase, title, of in PANELS if (runs := targets(results, phase))]
    drawn = Picture(figsize=(WIDTH * max(len(panels), 1), HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    for number, (title, of, runs) in enumerate(panels):
        values = {label: median(each, of) for label, each in runs.items()}
        _bars(drawn.add_subplot(1, len(panels), number + 1), title, values)
    return drawn


def _bars(axes: Axes, title: str, values: Mapping[str, float]) -> None:
    labels = sorted(values, key=lambda label: -values[label])
    colors = [OURS if is_ours(label) else PEER if is_peer(label) else NEITHER for label in labels]
    axes.barh(range(len(labels)), [values[label] for label in labels], color=colors, height=0.7)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=11)
    for place, label in enumerate(labels):
        value = values[label]
        axes.annotate(f" {value:,.0f}" if value >= 100 else f" {value:.3g}", (value, place), va="center", fontsize=9)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)
