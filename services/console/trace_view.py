"""A trace for a person: a line per span, with its bar on one time axis, under the span that caused it.

Pure: spans in, a rich renderable out.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from libs.telemetry import names
from libs.telemetry.span import SpanRecord, Value
from services.console.trace_tree import Node, build

COLOURS = {
    "envoy": "magenta",
    "admission": "cyan",
    "router": "blue",
    "batcher": "yellow",
    "kvcache": "green",
    "executor": "bright_magenta",
}
"""Of each stage's bar and name."""

KEY_ATTRIBUTES = {
    names.GEN_AI_REQUEST_MODEL: "model",
    names.GEN_AI_INPUT_TOKENS: "in",
    names.GEN_AI_CACHED_TOKENS: "cached",
    names.GEN_AI_OUTPUT_TOKENS: "out",
    names.GEN_AI_FINISH_REASONS: "finish",
    names.TENANT: "tenant",
    names.TIER: "tier",
    names.POOL: "pool",
    names.EXECUTOR: "executor",
    names.ATTEMPT: "attempt",
    names.RESUMED_TOKENS: "resumed",
    names.QUEUE_WAITING: "ahead",
    names.BLOCKS_MATCHED: "matched",
    names.BLOCKS_RESERVED: "reserved",
    names.BATCH_WORKS: "batch",
    names.CHOICE: "→",
    names.REASON: "",
    "http.status_code": "status",
    "http.response.status_code": "status",
    "upstream_cluster.name": "upstream",
}
"""Attributes that are shown, in this order, with what stands in front of them."""

EVENT_MARK = "◆"
ORPHANS = "? parent missing"
ORPHANS_REASON = "not ended yet, dropped, or exported elsewhere"


def render(spans: Sequence[SpanRecord], width: int) -> RenderableType:
    """Draws spans, one tree per trace; `width` in columns, from 60 on. No spans make a line that says so."""
    if not spans:
        return Text("no spans", style="dim")
    by_trace = groupby(sorted(spans, key=lambda span: span.trace_id), key=lambda span: span.trace_id)
    traces = sorted((list(group) for _, group in by_trace), key=lambda trace: min(span.start_ns for span in trace))
    parts: list[RenderableType] = []
    for trace in traces:
        parts += [_headline(trace), Text(), _table(trace, max(width, 60)), Text()]
    return Group(*parts[:-1])


def _headline(trace: Sequence[SpanRecord]) -> Text:
    start, end = _extent(trace)
    request = next((span.attributes[names.REQUEST_ID] for span in trace if names.REQUEST_ID in span.attributes), "")
    failed = sum(span.error is not None for span in trace)
    line = Text.assemble(
        (f"{request}  ", "bold"),
        (_seconds((end - start) / 1e9), "bold"),
        (
            f"  {len(trace)} spans in {len({(span.service, span.instance) for span in trace})} processes",
            "dim",
        ),
    )
    if failed:
        line.append(f"  {failed} failed", "bold red")
    line.append(f"\ntrace {trace[0].trace_id}", "dim")
    return line


def _table(trace: Sequence[SpanRecord], width: int) -> Table:
    start, end = _extent(trace)
    rows = [row for root in build(trace) for row in _rows(root, "", "")]
    widest = max(len(label) for label, _ in rows)
    # The tree takes what it needs, up to two fifths; each time 8 columns; of the rest, the bars two fifths.
    label_width = min(widest, width * 2 // 5)
    bar_width = max(12, (width - label_width - 4 * 2 - 2 * 8) * 2 // 5)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", width=label_width)
    table.add_column(justify="right", no_wrap=True, width=8)
    table.add_column(justify="right", no_wrap=True, width=8)
    table.add_column(no_wrap=True, width=bar_width)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.width = width
    table.expand = True
    took = _seconds((end - start) / 1e9)
    table.add_row("", "start", "took", "0" + took.rjust(bar_width - 1), "", style="bright_black")
    for label, span in rows:
        if span is None:
            table.add_row(label, "", "", "", Text(ORPHANS_REASON, style="yellow"))
            continue
        table.add_row(
            label,
            Text(f"+{_seconds((span.start_ns - start) / 1e9)}", style="dim"),
            Text(_seconds(span.duration_s), style="red" if span.error is not None else ""),
            _bar(span, start, end, bar_width),
            _details(span),
        )
    return table


def _rows(node: Node, first: str, rest: str) -> Iterator[tuple[Text, SpanRecord | None]]:
    """Each node's label, behind the lines of the tree: `first` leads this one, `rest` those below."""
    if node.span is None:
        yield Text(ORPHANS, style="bold yellow"), None
    else:
        yield _label(node.span, first), node.span
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        yield from _rows(child, rest + ("└ " if last else "├ "), rest + ("  " if last else "│ "))


def _label(span: SpanRecord, lead: str) -> Text:
    failed = span.error is not None
    name = span.name.rpartition("/")[2]  # of an RPC's full name the method says enough here
    return Text.assemble(
        (lead, "dim"),
        (span.service or "?", "bold red" if failed else f"bold {_colour(span)}"),
        (f" {name}", "red" if failed else ""),
    )


def _bar(span: SpanRecord, start: int, end: int, width: int) -> Text:
    """The span's place on the axis, drawn in half columns; at least one. Events stand on it as marks."""
    halves = 2 * width
    scale = halves / max(end - start, 1)
    left = min(int((span.start_ns - start) * scale), halves - 1)
    right = max(min(round((span.end_ns - start) * scale), halves), left + 1)
    cells = []
    for column in range(width):
        covers = (left <= 2 * column < right, left <= 2 * column + 1 < right)
        cells.append({(True, True): "━", (True, False): "╸", (False, True): "╺", (False, False): " "}[covers])
    marks = {min(max(int((event.time_ns - start) * scale) // 2, 0), width - 1) for event in span.events}
    bar = Text()
    for column, cell in enumerate(cells):
        if column in marks:
            bar.append(EVENT_MARK, "bold white")
        elif cell == " ":
            bar.append("·" if column % 8 == 0 else " ", "bright_black")
        else:
            bar.append(cell, "bold red" if span.error is not None else _colour(span))
    return bar


def _details(span: SpanRecord) -> Text:
    parts: list[tuple[str, str]] = []
    if span.error is not None:
        kind = span.attributes.get(names.ERROR_TYPE, "")
        parts.append((": ".join(part for part in (str(kind), span.error) if part) or "failed", "bold red"))
    for key, short in KEY_ATTRIBUTES.items():
        if key in span.attributes:
            parts.append((f"{short} {_plain(span.attributes[key])}".strip(), ""))
    parts += [(f"{EVENT_MARK} {event.name}", "dim") for event in span.events]
    line = Text()
    for text, style in parts:
        line.append("  " if line else "").append(text, style)
    return line


def _plain(value: Value) -> str:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return ",".join(value)


def _seconds(duration: float) -> str:
    """A duration in at most seven characters."""
    if duration < 0.000_999_5:
        return f"{duration * 1e6:.0f}µs"
    if duration < 0.999_5:
        return f"{duration * 1e3:.1f}ms" if duration < 0.099_95 else f"{duration * 1e3:.0f}ms"
    return f"{duration:.2f}s" if duration < 100 else f"{duration:.0f}s"


def _colour(span: SpanRecord) -> str:
    return COLOURS.get(span.service.removeprefix("headrace-"), "white")


def _extent(trace: Sequence[SpanRecord]) -> tuple[int, int]:
    return min(span.start_ns for span in trace), max(span.end_ns for span in trace)
