"""Finds the spans of a request in trace files.

Files are searched as bytes, and only lines that hold the id are parsed: 100 MB take a fraction of a second. Lines
that are cut off, or not spans, are passed over.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from libs.telemetry import names
from libs.telemetry.otlp import MalformedLine, decode_line
from libs.telemetry.span import SpanRecord
from libs.telemetry.span_file import OLD

MAX_SPANS = 10_000
"""Spans of one request that are read at most."""


def find_request(traces_dir: Path, request_id: str) -> list[SpanRecord]:
    """Every span of every trace in which a span bears the attribute headrace.request_id, by start.

    A request that was sent again under the same id may have several traces. Empty when nothing is known of
    it, or not yet: spans reach their file within half a second after they ended.
    """
    traces = {
        span.trace_id for span in _scan(traces_dir, request_id) if span.attributes.get(names.REQUEST_ID) == request_id
    }
    return sorted(
        (span for trace_id in traces for span in find_trace(traces_dir, trace_id)),
        key=lambda span: span.start_ns,
    )


def find_trace(traces_dir: Path, trace_id: str) -> list[SpanRecord]:
    """Every span of a trace, by start; each once, also if it was exported twice."""
    spans: dict[str, SpanRecord] = {}
    for span in _scan(traces_dir, trace_id):
        if span.trace_id == trace_id and len(spans) < MAX_SPANS:
            spans[span.span_id] = span
    return sorted(spans.values(), key=lambda span: span.start_ns)


def _scan(traces_dir: Path, text: str) -> Iterator[SpanRecord]:
    """The spans of all lines that hold `text` as a whole JSON string."""
    needle = msgspec.json.encode(text)
    for path in sorted(traces_dir.glob("*.jsonl*")):
        if path.suffix not in (".jsonl", OLD):
            continue
        try:
            yield from _scan_file(path, needle)
        except FileNotFoundError:  # replaced by a newer one while we looked
            continue


def _scan_file(path: Path, needle: bytes) -> Iterator[SpanRecord]:
    with path.open("rb") as file:
        for line in file:
            if needle in line:
                try:
                    yield from decode_line(line)
                except MalformedLine:
                    pass
