"""Spans: contexts, sampling, limits and cost."""

import time

import pytest

from libs.telemetry import names
from libs.telemetry.otlp_writer import parse_endpoint
from libs.telemetry.span import Kind, SpanRecord, is_unsampled, parse_traceparent
from libs.telemetry.tracing import MAX_ATTRIBUTES, MAX_EVENTS, Span, Tracing, untraced

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


def recorder(ratio: float = 1.0) -> tuple[Tracing, list[SpanRecord]]:
    records: list[SpanRecord] = []
    return Tracing("router", "router-0", ratio, records.append), records


@pytest.mark.parametrize(
    ("text", "flags"),
    [(SAMPLED, 1), (UNSAMPLED, 0), (f"00-{TRACE}-{SPAN}-ff", 3), (f"01-{TRACE}-{SPAN}-01-what-comes", 1)],
)
def test_reads_a_traceparent(text: str, flags: int) -> None:
    assert parse_traceparent(text) == (TRACE, SPAN, flags)
    assert is_unsampled(text) == (text == UNSAMPLED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-00",
        f"00-{TRACE}-{'0' * 16}-00",
        f"ff-{TRACE}-{SPAN}-00",
        f"00-{TRACE.upper()}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-00-more",
        f"00-{TRACE}-{SPAN}-0",
        f"00-{TRACE}-{SPAN}-00\n",
        f"00-{TRACE[:-1]}٣-{SPAN}-00",
    ],
)
def test_starts_a_new_trace_where_the_traceparent_is_none(text: str) -> None:
    assert parse_traceparent(text) is None
    tracing, records = recorder()
    tracing.start(names.GENERATE, text).end()
    assert records[0].parent_id == ""
    assert records[0].trace_id != TRACE


def test_a_child_belongs_to_its_parent() -> None:
    tracing, records = recorder()
    above = tracing.start(names.ROUTE, SAMPLED, kind=Kind.SERVER, attributes={names.POOL: "smollm2"})
    below = tracing.start(names.QUEUE, above.traceparent)
    below.end()
    above.end()
    queue, route = records
    assert route.trace_id == queue.trace_id == TRACE
    assert (route.parent_id, queue.parent_id) == (SPAN, route.span_id)
    assert above.traceparent == f"00-{TRACE}-{route.span_id}-01"
    assert (route.kind, route.attributes) == (Kind.SERVER, {names.POOL: "smollm2"})
    assert (route.service, route.instance) == ("router", "router-0")
    assert route.start_ns <= queue.start_ns <= queue.end_ns <= route.end_ns


def test_the_decision_of_the_parent_holds() -> None:
    never, records = recorder(ratio=0.0)
    assert never.start(names.ROUTE, SAMPLED).recording
    always, dropped = recorder(ratio=1.0)
    span = always.start(names.ROUTE, UNSAMPLED)
    span.set(names.POOL, "smollm2")
    span.event(names.RESUMED)
    span.error("no")
    span.end()
    assert type(span) is Span
    assert span.traceparent == UNSAMPLED
    assert not records
    assert not dropped


def test_a_new_trace_that_is_not_sampled_says_so_to_those_below() -> None:
    tracing, records = recorder(ratio=0.0)
    above = tracing.start(names.GENERATE)
    context = parse_traceparent(above.traceparent)
    assert context is not None
    assert not context.sampled
    other, others = recorder(ratio=1.0)
    other.start(names.ROUTE, above.traceparent).end()
    above.end()
    assert not records
    assert not others


def test_samples_the_share_that_was_asked_for() -> None:
    tracing, records = recorder(ratio=0.25)
    for _ in range(4000):
        tracing.start(names.GENERATE).end()
    assert 800 <= len(records) <= 1200  # seven standard deviations
    assert len({record.trace_id for record in records}) == len(records)
    with pytest.raises(ValueError, match="between 0 and 1"):
        recorder(ratio=1.5)


def test_times_may_be_given() -> None:
    tracing, records = recorder()
    tracing.start(names.QUEUE, start_time=1_700_000_000.0).end(1_700_000_000.25)
    tracing.start(names.QUEUE, start_time=1_700_000_000.0).end(1_600_000_000.0)  # the clock was set back
    assert records[0].duration_s == pytest.approx(0.25)
    assert records[0].start_ns == 1_700_000_000_000_000_000
    assert records[1].duration_s == 0


def test_an_ended_span_is_closed() -> None:
    tracing, records = recorder()
    span = tracing.start(names.QUEUE)
    span.set(names.POOL, "smollm2")
    span.end()
    assert not span.recording
    span.set(names.POOL, "other")
    span.event(names.CANCELLED)
    span.error("late")
    span.end()
    assert len(records) == 1
    assert (records[0].attributes, records[0].events, records[0].error) == ({names.POOL: "smollm2"}, [], None)


def test_an_exception_marks_the_span_but_its_text_stays_here() -> None:
    tracing, records = recorder()
    with pytest.raises(KeyError), tracing.start(names.LOOKUP):
        raise KeyError("a prompt")
    assert records[0].error == "KeyError"
    assert records[0].attributes == {names.ERROR_TYPE: "KeyError"}
    with tracing.start(names.LOOKUP, SAMPLED):
        pass
    assert records[1].error is None


def test_a_span_is_bounded() -> None:
    tracing, records = recorder()
    span = tracing.start(names.DECODE)
    for index in range(MAX_ATTRIBUTES + 5):
        span.set(f"key{index}", index)
        span.event("step")
    span.set("key0", "again")
    span.end()
    assert len(records[0].attributes) == MAX_ATTRIBUTES
    assert records[0].attributes["key0"] == "again"
    assert records[0].dropped == 5
    assert len(records[0].events) == MAX_EVENTS


def test_spans_are_cheap() -> None:
    """Measured: 4.5 µs and 0.7 µs. The bounds leave room for a slow and busy machine, but not for the SDK."""

    def cost_us(tracing: Tracing, parent: str) -> float:
        best = float("inf")
        for _ in range(5):
            start = time.thread_time()
            for _ in range(2000):
                span = tracing.start(names.ROUTE, parent, attributes={"a": 1, "b": "x"})
                span.set("c", 2)
                span.end()
            best = min(best, (time.thread_time() - start) / 2000 * 1e6)
        return best

    assert cost_us(untraced(), SAMPLED) < 15
    assert cost_us(untraced(), UNSAMPLED) < 3


@pytest.mark.parametrize(
    ("endpoint", "parsed"),
    [
        ("http://localhost:4317", ("localhost:4317", False)),
        ("https://collector.example:443/", ("collector.example:443", True)),
        ("localhost:4317", ("localhost:4317", False)),
        ("http://collector", ("collector:4317", False)),
        ("http://[::1]:4317", ("[::1]:4317", False)),
    ],
)
def test_reads_an_endpoint(endpoint: str, parsed: tuple[str, bool]) -> None:
    assert parse_endpoint(endpoint) == parsed


@pytest.mark.parametrize("endpoint", ["grpc://x:1", "http://", "http://x:1/v1/traces", "http://x:port"])
def test_refuses_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(endpoint)
