"""The trace tree: who hangs below whom, and what a person sees of it."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from libs.telemetry import names
from libs.telemetry.span import Event, Kind, SpanRecord, Value
from services.console.trace_tree import Node, build
from services.console.trace_view import EVENT_MARK, ORPHANS, render


def a_span(
    span_id: str,
    parent: str,
    start_ms: int,
    end_ms: int,
    service: str = "router",
    name: str = "route",
    **more: object,
) -> SpanRecord:
    attributes: dict[str, Value] = {key.replace("__", "."): str(value) for key, value in more.items()}
    kind = Kind.SERVER if parent in ("", "client") else Kind.INTERNAL
    return SpanRecord(
        "t" * 32,
        span_id,
        parent,
        name,
        kind,
        start_ms * 10**6,
        end_ms * 10**6,
        service,
        f"{service}-0",
        attributes,
    )


REQUEST = [
    a_span("e", "", 0, 100, "envoy", "ingress"),
    a_span("a", "e", 1, 99, "admission", names.GENERATE, headrace__request_id="req-1", headrace__tenant="search"),
    a_span("r", "a", 2, 98),
    a_span("d", "r", 10, 97, "batcher", "dispatch"),
    a_span("q", "r", 3, 10, "batcher", "queue"),
    a_span("x", "d", 12, 96, "executor", "decode"),
]


def shape(nodes: list[Node]) -> list[object]:
    return [(node.span.span_id if node.span else None, *shape(node.children)) for node in nodes]


def picture(spans: list[SpanRecord], width: int = 120) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(spans, width))
    return console.export_text().splitlines()


def test_children_stand_below_their_parent_by_start() -> None:
    assert shape(build(REQUEST)) == [("e", ("a", ("r", ("q",), ("d", ("x",)))))]


def test_the_span_below_a_caller_that_is_not_ours_is_the_root() -> None:
    spans = [a_span("a", "client", 0, 9), a_span("r", "a", 1, 8), a_span("o", "gone", 2, 3)]
    assert shape(build(spans)) == [("a", ("r",)), (None, ("o",))]


def test_spans_without_their_parent_are_shown_last() -> None:
    spans = [span for span in REQUEST if span.span_id != "d"]
    assert shape(build(spans)) == [("e", ("a", ("r", ("q",)))), (None, ("x",))]


def test_a_circle_is_cut_open() -> None:
    spans = [a_span("a", "b", 0, 1), a_span("b", "a", 1, 2), a_span("c", "c", 2, 3)]
    roots = build(spans)
    assert shape(roots) == [(None, ("a", ("b",)), ("c",))]
    assert sum(1 for root in roots for _ in root.spans) == 3


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_span_is_one_line_within_the_width(width: int) -> None:
    lines = picture(REQUEST, width)
    assert len(lines) == 3 + 1 + len(REQUEST)  # the headline's two, an empty one, and the axis
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("req-1  100ms  6 spans in 5 processes")


def test_bars_stand_on_one_axis() -> None:
    lines = picture(REQUEST)
    queue = next(line for line in lines if "batcher queue" in line)
    decode = next(line for line in lines if "executor decode" in line)
    root = next(line for line in lines if "envoy ingress" in line)
    first = root.index("━")
    bar = root.count("━")
    assert "+3.0ms" in queue
    assert "7.0ms" in queue
    halves = 2 * queue.count("━") + queue.count("╺") + queue.count("╸")
    assert halves == pytest.approx(2 * bar * 0.07, abs=1)
    begins = min(decode.index(mark) for mark in "━╺" if mark in decode)
    assert begins - first == pytest.approx(bar * 0.12, abs=1)
    assert "tenant search" in next(line for line in lines if "admission Generate" in line)


def test_an_instant_still_has_a_bar() -> None:
    lines = picture([REQUEST[0], a_span("k", "e", 100, 100, "kvcache", "lookup")])
    assert "╺" in lines[-1]


def test_errors_are_red_and_say_why() -> None:
    spans = [*REQUEST[:-1], a_span("x", "d", 12, 96, "executor", "decode", error__type="NO_EXECUTOR")]
    spans[-1].error = "the engine died"
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(spans, 140))
    styled = console.export_text(styles=True, clear=False).splitlines()
    plain = console.export_text().splitlines()
    assert "1 failed" in plain[0]
    assert "NO_EXECUTOR: the engine died" in plain[-1]
    assert "\x1b[1;31mexecutor" in styled[-1]
    assert "\x1b[1;31m" not in styled[-2]


def test_events_stand_on_the_bar_and_orphans_are_marked() -> None:
    span = a_span("a", "", 0, 100)
    span.events.append(Event(50 * 10**6, names.FIRST_TOKEN))
    lines = picture([span, a_span("o", "gone", 20, 30)])
    marked = lines[4]
    assert marked.count(EVENT_MARK) == 2  # on the bar, and beside its name
    assert f"{EVENT_MARK} first_token" in marked
    assert lines[5].startswith(ORPHANS)


def test_traces_of_one_request_are_drawn_apart() -> None:
    later = a_span("b", "", 500, 600)
    later.trace_id = "s" * 32
    lines = picture([later, *REQUEST])
    heads = [line for line in lines if line.startswith("trace ")]
    assert heads == [f"trace {'t' * 32}", f"trace {'s' * 32}"]


def test_nothing_is_said_to_be_nothing() -> None:
    nothing = render([], 80)
    assert isinstance(nothing, Text)
    assert nothing.plain == "no spans"
