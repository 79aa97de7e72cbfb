"""Spans to an OTLP gRPC collector, through the SDK's exporter: its retries, and its environment variables for
headers, certificates and compression (`OTEL_EXPORTER_OTLP_HEADERS` and so on)."""

import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from libs.telemetry.otlp import SCOPE
from libs.telemetry.span import MAX_TEXT, SpanRecord, Value

TIMEOUT_S = 5
"""Seconds that a batch is tried for; the queue bounds what gathers meanwhile."""

_KINDS = (
    SpanKind.INTERNAL,
    SpanKind.INTERNAL,
    SpanKind.SERVER,
    SpanKind.CLIENT,
    SpanKind.PRODUCER,
    SpanKind.CONSUMER,
)
_log = logging.getLogger(__name__)


class OtlpWriter:
    """A SpanWriter that sends."""

    def __init__(self, endpoint: str, resource: dict[str, Value]) -> None:
        """Does not wait for the collector. Raises ValueError when `parse_endpoint` refuses the endpoint."""
        address, secure = parse_endpoint(endpoint)
        self._resource = Resource(resource)
        # A URL of our own making: of a bare "host:port" the exporter takes the host for a scheme.
        url = f"{'https' if secure else 'http'}://{address}"
        self._exporter = OTLPSpanExporter(endpoint=url, insecure=not secure, timeout=TIMEOUT_S)
        self._closed = False

    def write(self, records: Sequence[SpanRecord]) -> bool:
        """Sends a batch, trying again for TIMEOUT_S; the exporter logs why when it gives up."""
        if self._closed:
            return False
        try:
            spans = [_to_sdk(record, self._resource) for record in records]
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # a fault of the exporter must not end the thread that all spans go through
            _log.exception("spans cannot be sent and are dropped")
            return False

    def close(self) -> None:
        """Gives up what is being sent. Idempotent."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()


def parse_endpoint(endpoint: str) -> tuple[str, bool]:
    """The host:port of a collector, and whether to use TLS, which only `https://` asks for.

    Raises ValueError.
    """
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ValueError(f"{endpoint!r} is not the address of an OTLP gRPC collector, like http://localhost:4317")
    return (parts.netloc if parts.port else f"{parts.netloc}:4317"), parts.scheme == "https"


def _to_sdk(record: SpanRecord, resource: Resource) -> sdk.ReadableSpan:
    trace_id, flags = int(record.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
    parent = SpanContext(trace_id, int(record.parent_id, 16), True, flags) if record.parent_id else None
    return sdk.ReadableSpan(
        record.name[:MAX_TEXT],
        SpanContext(trace_id, int(record.span_id, 16), False, flags),
        parent,
        resource,
        {key: _cut(value) for key, value in record.attributes.items()},
        [sdk.Event(event.name, timestamp=event.time_ns) for event in record.events],
        kind=_KINDS[record.kind],
        status=Status() if record.error is None else Status(StatusCode.ERROR, record.error[:MAX_TEXT]),
        start_time=record.start_ns,
        end_time=record.end_ns,
        instrumentation_scope=InstrumentationScope(SCOPE),
    )


def _cut(value: Value) -> Value:
    return value[:MAX_TEXT] if isinstance(value, str) else value
