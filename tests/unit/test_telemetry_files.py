"""Spans in local files: the form, the bound, the way back."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from libs.telemetry import names
from libs.telemetry.export import QUEUE_SPANS, FileWriter, SpanQueue
from libs.telemetry.otlp import MalformedLine, decode_line
from libs.telemetry.span import MAX_TEXT, Kind, SpanRecord
from libs.telemetry.span_file import LIMIT_BYTES, SpanFile
from libs.telemetry.store import find_request, find_trace
from libs.telemetry.tracing import setup_tracing


def a_record(number: int, request_id: str = "r") -> SpanRecord:
    return SpanRecord(
        trace_id=f"{number + 1:032x}",
        span_id=f"{number + 1:016x}",
        parent_id="",
        name=names.GENERATE,
        kind=Kind.SERVER,
        start_ns=number,
        end_ns=number + 1,
        service="admission",
        instance="admission-0",
        attributes={names.REQUEST_ID: request_id},
    )


@contextmanager
def a_writer(path: Path, limit: int = LIMIT_BYTES) -> Iterator[FileWriter]:
    writer = FileWriter(SpanFile(path, limit), {})
    try:
        yield writer
    finally:
        writer.close()


def test_a_span_comes_back_as_it_went(tmp_path: Path) -> None:
    tracing = setup_tracing("batcher", "batcher/0", "", tmp_path, 1.0)
    root = tracing.start(names.DISPATCH, kind=Kind.CLIENT, start_time=1_700_000_000.5)
    root.set(names.REQUEST_ID, 'r-"1"\\é')
    root.set(names.ATTEMPT, 2**62)
    root.set(names.GEN_AI_REQUEST_TEMPERATURE, 0.5)
    root.set(names.GEN_AI_REQUEST_STREAM, True)
    root.set(names.GEN_AI_FINISH_REASONS, ["stop"])
    root.set(names.REASON, "z" * (MAX_TEXT + 1))
    root.event(names.RESUMED)
    root.error("it broke", "NO_EXECUTOR")
    root.end()
    tracing.shutdown()
    assert tracing.fates == (1, 0)

    (path,) = tmp_path.iterdir()
    assert path.name == "batcher-batcher_0.jsonl"
    (span,) = find_request(tmp_path, 'r-"1"\\é')
    assert (span.service, span.instance) == ("batcher", "batcher/0")
    assert (span.name, span.kind, span.parent_id) == (names.DISPATCH, Kind.CLIENT, "")
    assert root.traceparent[3:52] == f"{span.trace_id}-{span.span_id}"
    assert span.start_ns == 1_700_000_000_500_000_000
    assert span.end_ns > span.start_ns
    assert span.attributes == {
        names.REQUEST_ID: 'r-"1"\\é',
        names.ATTEMPT: 2**62,
        names.GEN_AI_REQUEST_TEMPERATURE: 0.5,
        names.GEN_AI_REQUEST_STREAM: True,
        names.GEN_AI_FINISH_REASONS: ["stop"],
        names.REASON: "z" * MAX_TEXT,
        names.ERROR_TYPE: "NO_EXECUTOR",
    }
    assert [event.name for event in span.events] == [names.RESUMED]
    assert span.error == "it broke"


def test_a_line_is_otlp_json(tmp_path: Path) -> None:
    """Protobuf's own JSON parser reads it, but for ids: hexadecimal in OTLP, base64 in protobuf."""
    tracing = setup_tracing("router", "router-0", "", tmp_path, 1.0)
    span = tracing.start(names.ROUTE, attributes={names.POOL: "p", names.ATTEMPT: 1})
    span.event(names.RESUMED)
    span.error("")
    span.end()
    tracing.shutdown()
    line = json.loads((tmp_path / "router-router-0.jsonl").read_text())
    data = json_format.ParseDict(line, TracesData())
    resource = {pair.key: pair.value.string_value for pair in data.resource_spans[0].resource.attributes}
    assert resource[names.SERVICE_NAME] == "router"
    assert resource[names.SERVICE_INSTANCE_ID] == "router-0"
    read = data.resource_spans[0].scope_spans[0].spans[0]
    assert (read.name, read.kind, read.status.code) == (names.ROUTE, 1, 2)
    assert [pair.value.WhichOneof("value") for pair in read.attributes] == ["string_value", "int_value"]
    assert read.end_time_unix_nano >= read.start_time_unix_nano > 0


def test_a_person_sees_a_span_within_half_a_second(tmp_path: Path) -> None:
    tracing = setup_tracing("router", "r", "", tmp_path, 1.0)
    for _ in range(2):  # the second one wakes a thread that went back to sleep
        with tracing.start(names.ROUTE) as span:
            trace_id = span.traceparent[3:35]
        until = time.monotonic() + 0.5
        while not (found := find_trace(tmp_path, trace_id)) and time.monotonic() < until:
            time.sleep(0.02)
        assert found
    tracing.shutdown()


def test_a_file_never_passes_its_bound(tmp_path: Path) -> None:
    path, limit = tmp_path / "a.jsonl", 40_000
    with a_writer(path, limit) as writer:
        for number in range(0, 400, 8):
            assert writer.write([a_record(number + index, f"r{number + index}") for index in range(8)])
            assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= limit
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.1"]
    assert not find_request(tmp_path, "r0")
    kept = [number for number in range(400) if find_request(tmp_path, f"r{number}")]
    assert kept == list(range(kept[0], 400))  # the latest, without a hole
    assert len(kept) > 30


def test_a_line_that_never_fits_is_left_out(tmp_path: Path) -> None:
    file = SpanFile(tmp_path / "a.jsonl", 100)
    file.append([b"x" * 60 + b"\n", b"fits\n"])
    file.close()
    assert (tmp_path / "a.jsonl").read_bytes() == b"fits\n"


def test_a_restart_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with a_writer(path) as writer:
        writer.write([a_record(0, "before")])
    path.write_bytes(path.read_bytes() + b'{"resourceSpans":[{"reso "torn" after')
    with a_writer(path) as writer:
        writer.write([a_record(1, "after")])
    assert [find_request(tmp_path, name) != [] for name in ("before", "torn", "after")] == [True, False, True]


def test_says_once_that_a_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with a_writer(tmp_path / "full.jsonl") as writer:
        assert not writer.write([a_record(0)])
        assert not writer.write([a_record(1)])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


class Slow:
    """A writer that hangs until it is closed, as a collector behind a broken network does."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def write(self, records: Sequence[SpanRecord]) -> bool:
        self.closed.wait(30)
        return False

    def close(self) -> None:
        self.closed.set()


def test_a_full_queue_drops_and_counts_and_shutdown_does_not_wait() -> None:
    queue = SpanQueue(Slow())
    for number in range(QUEUE_SPANS + 500):
        queue.put(a_record(number))
    assert queue.dropped >= 500 - 32  # one batch may have left the queue
    start = time.monotonic()
    queue.close(0.3)
    assert time.monotonic() - start < 2
    queue.put(a_record(0))
    assert queue.exported == 0
    assert queue.dropped == QUEUE_SPANS + 501


def test_finds_all_traces_of_a_request_and_all_their_spans(tmp_path: Path) -> None:
    admission = setup_tracing("admission", "0", "", tmp_path, 1.0)
    router = setup_tracing("router", "0", "", tmp_path, 1.0)
    for request_id in ("wanted", "other", "wanted"):  # the client sent it again
        with admission.start(names.GENERATE, attributes={names.REQUEST_ID: request_id}) as span:
            router.start(names.ROUTE, span.traceparent, attributes={names.POOL: "wanted"}).end()
    admission.shutdown()
    router.shutdown()
    found = find_request(tmp_path, "wanted")
    assert [span.name for span in found] == [names.GENERATE, names.ROUTE] * 2
    assert len({span.trace_id for span in found}) == 2
    assert not find_request(tmp_path, "smollm2")
    assert not find_request(tmp_path / "nowhere", "wanted")


def test_a_span_that_came_twice_is_shown_once(tmp_path: Path) -> None:
    with a_writer(tmp_path / "a.jsonl") as writer:
        writer.write([a_record(0), a_record(0)])
    assert len(find_request(tmp_path, "r")) == 1


def test_searches_a_hundred_megabytes_in_no_time(tmp_path: Path) -> None:
    """Measured: 0.15 s."""
    with a_writer(tmp_path / "a.jsonl") as writer:
        writer.write([a_record(0, "needle")])
    line = (tmp_path / "a.jsonl").read_bytes()
    hay = line.replace(b"needle", b"straws").replace(f"{1:032x}".encode(), f"{2:032x}".encode())
    with (tmp_path / "a.jsonl").open("wb") as file:
        for _ in range(100):
            file.write(hay * (1_000_000 // len(hay)))
        file.write(line)
    start = time.monotonic()
    (span,) = find_request(tmp_path, "needle")
    assert span.attributes[names.REQUEST_ID] == "needle"
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"resourceSpans":[{}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{}]}]}]}',
        b"\xff",
    ],
)
def test_refuses_what_is_no_line(line: bytes) -> None:
    with pytest.raises(MalformedLine):
        decode_line(line)
