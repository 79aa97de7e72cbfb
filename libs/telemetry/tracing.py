"""Spans for a mesh whose requests do not live in one coroutine: a parent is a string that came with the work.

Why not the SDK's tracer: measured on CPython 3.11, starting and ending a span with six attributes costs 18 µs
there, and 4.2 µs when it is not sampled; here 4.5 µs and 0.7 µs (tests/unit/test_telemetry_tracing.py guards
it). So the hot path makes a SpanRecord and queues it; a thread of its own (`libs.telemetry.export`) turns
records into the SDK's spans for its OTLP exporter, or into lines of a file. Ids, flags, sampling and limits
are those of the OpenTelemetry specification.

`tracestate` and baggage do not travel: a lane carries the traceparent alone.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from libs.telemetry import names, otlp
from libs.telemetry.export import FileWriter, SpanQueue, SpanWriter
from libs.telemetry.span import Event, Kind, SpanRecord, TraceContext, Value, is_unsampled, parse_traceparent
from libs.telemetry.span_file import LIMIT_BYTES, SpanFile

try:
    VERSION = metadata.version("headrace")
except metadata.PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0"

MAX_ATTRIBUTES = 64
"""Attributes of a span; further keys are counted and left out."""
MAX_EVENTS = 64
"""Events of a span; further ones are left out."""

_RANDOM = random.Random()  # noqa: S311  # ids are no secrets; the operating system seeds it


class Span:
    """A span of a request that is not traced: it does nothing, and hands the decision on to the next stage.

    Its traceparent is that of its parent. The spans of requests that are traced are RecordingSpans.
    """

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent
        """W3C trace context for those below."""

    @property
    def recording(self) -> bool:
        """Whether it is worth computing an attribute."""
        return False

    def set(self, key: str, value: Value) -> None:
        """Sets an attribute."""

    def event(self, name: str) -> None:
        """Notes that something happens now."""

    def error(self, description: str, kind: str = "") -> None:
        """Marks the span as failed; `kind` becomes the attribute error.type."""

    def end(self, end_time: float | None = None) -> None:
        """Ends the span now or at a Unix time in seconds. Changes after the first `end` are ignored."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # the text of an exception may quote a prompt: only its name leaves the process
            self.error(kind.__name__, kind.__name__)
        self.end()


class RecordingSpan(Span):
    """A span of a request that is traced. Exported when it has ended."""

    __slots__ = ("_put", "_record")

    def __init__(self, context: TraceContext, record: SpanRecord, put: Callable[[SpanRecord], None]) -> None:
        super().__init__(str(context))
        self._record = record
        self._put: Callable[[SpanRecord], None] | None = put

    @property
    def recording(self) -> bool:
        return self._put is not None

    def set(self, key: str, value: Value) -> None:
        if self._put is None:
            return
        attributes = self._record.attributes
        if len(attributes) < MAX_ATTRIBUTES or key in attributes:
            attributes[key] = value
        else:
            self._record.dropped += 1

    def event(self, name: str) -> None:
        if self._put is not None and len(self._record.events) < MAX_EVENTS:
            self._record.events.append(Event(time.time_ns(), name))

    def error(self, description: str, kind: str = "") -> None:
        if self._put is None:
            return
        self._record.error = description
        if kind:
            self.set(names.ERROR_TYPE, kind)

    def end(self, end_time: float | None = None) -> None:
        put, self._put = self._put, None
        if put is None:
            return
        record = self._record
        end_ns = time.time_ns() if end_time is None else int(end_time * 1e9)
        record.end_ns = max(end_ns, record.start_ns)  # the wall clock may have been set back
        put(record)


class Tracing:
    """Makes the spans of one process."""

    def __init__(
        self,
        service: str,
        instance: str,
        ratio: float,
        put: Callable[[SpanRecord], None],
        queue: SpanQueue | None = None,
    ) -> None:
        """Use `setup_tracing`, or `untraced`; in tests, `put` may be the `append` of a list.

        Args:
            ratio: Share of new traces that are recorded, 0 to 1. A trace that came with a request keeps
                what was decided for it.
            put: Takes each record that ended; must be cheap and not raise.
            queue: What `shutdown` empties, if there is one.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"a share lies between 0 and 1, not at {ratio}")
        self._service = service
        self._instance = instance
        self._bound = round(ratio * 2**64)
        self._put = put
        self._queue = queue

    def start(
        self,
        name: str,
        parent: str = "",
        *,
        kind: Kind = Kind.INTERNAL,
        start_time: float | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> Span:
        """Starts a span below `parent`, a traceparent; without a valid one, a new trace.

        Args:
            start_time: Unix time in seconds, if it was not now.
        """
        if parent and parent[-1] != "1" and is_unsampled(parent):  # nearly every request where few are traced
            return Span(parent)
        above = parse_traceparent(parent) if parent else None
        if above is None:
            number = _RANDOM.getrandbits(128) or 1
            # The lower half decides, as in the SDK's TraceIdRatioBased: all processes decide alike.
            if (number & 0xFFFF_FFFF_FFFF_FFFF) >= self._bound:
                return Span(f"00-{number:032x}-{_span_id()}-00")
            context, parent_id = TraceContext(f"{number:032x}", _span_id(), 1), ""
        elif above.sampled:
            context, parent_id = TraceContext(above.trace_id, _span_id(), above.flags), above.span_id
        else:
            return Span(parent)
        start_ns = time.time_ns() if start_time is None else int(start_time * 1e9)
        record = SpanRecord(
            context.trace_id, context.span_id, parent_id, name, kind, start_ns, 0,
            self._service, self._instance, dict(attributes) if attributes else {},
        )  # fmt: skip
        return RecordingSpan(context, record, self._put)

    @property
    def fates(self) -> tuple[int, int]:
        """How many spans were exported and how many were dropped so far."""
        return (self._queue.exported, self._queue.dropped) if self._queue else (0, 0)

    def shutdown(self, timeout: float = 2.0) -> None:
        """Exports what has ended, for `timeout` seconds at most. Blocks: the last thing a process does."""
        if self._queue:
            self._queue.close(timeout)


def _span_id() -> str:
    return f"{_RANDOM.getrandbits(64) or 1:016x}"


def untraced() -> Tracing:
    """Tracing that records nothing of its own and throws away what others decided to record."""
    return Tracing("", "", 0.0, lambda record: None)


def setup_tracing(
    service: str,
    instance: str,
    otlp_endpoint: str,
    traces_dir: Path,
    ratio: float,
    *,
    limit_bytes: int = LIMIT_BYTES,
) -> Tracing:
    """The tracing of a process: to a collector if there is one, else to TRACES_DIR/SERVICE-INSTANCE.jsonl.

    Args:
        otlp_endpoint: host:port of an OTLP gRPC collector, with `https://` for TLS; empty for none.
        ratio: Share of new traces that are recorded.
        limit_bytes: What the local files may take.

    Raises ValueError for a wrong endpoint or ratio, OSError when the file cannot be opened.
    """
    resource = otlp.resource(service, instance, VERSION)
    writer: SpanWriter
    if otlp_endpoint:
        # Imported here: the exporter takes longer to import than a service to start, and most meshes on one
        # machine have no collector.
        from libs.telemetry.otlp_writer import OtlpWriter

        writer = OtlpWriter(otlp_endpoint, resource)
    else:
        writer = FileWriter(SpanFile(traces_dir / span_file_name(service, instance), limit_bytes), resource)
    queue = SpanQueue(writer)
    return Tracing(service, instance, ratio, queue.put, queue)


def span_file_name(service: str, instance: str) -> str:
    """The name of a process's trace file; characters that a file name cannot have become "_"."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{service}-{instance}") + ".jsonl"
