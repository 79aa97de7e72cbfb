"""Spans in OTLP's three shapes: lines of JSON, the collector's messages, and the SDK's objects.

A line of JSON is a whole `TracesData` with one span, so that a trace file is what OpenTelemetry's collector
writes with its file exporter and reads with its `otlpjsonfile` receiver. By OTLP/JSON, ids are hexadecimal
and 64-bit integers are strings.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from libs.telemetry import names
from libs.telemetry.span import MAX_TEXT, Event, Kind, SpanRecord, Value

SCOPE = "headrace"
"""The instrumentation scope of every span that the mesh makes."""

_ERROR = 2  # opentelemetry.proto.trace.v1.Status.STATUS_CODE_ERROR
_encode = msgspec.json.Encoder().encode


class MalformedLine(ValueError):
    """A line is not a span: cut off by a crash, or not written by us."""


# --- To JSON. Runs for each span: the resource, the same for all of a process, is encoded once.


def resource(service: str, instance: str, version: str) -> dict[str, Value]:
    """The resource of a process of the mesh."""
    return {
        names.SERVICE_NAME: service,
        names.SERVICE_NAMESPACE: "headrace",
        names.SERVICE_INSTANCE_ID: instance,
        names.SERVICE_VERSION: version,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "headrace",  # the specification keeps "opentelemetry" for the SDK itself
        "telemetry.sdk.version": version,
    }


def line_frame(attributes: Mapping[str, Value]) -> tuple[bytes, bytes]:
    """What stands in front of and behind each span in a line; the same for all spans of a process."""
    head = _encode({"attributes": _attributes(attributes)})
    scope = _encode({"name": SCOPE})
    return b'{"resourceSpans":[{"resource":%b,"scopeSpans":[{"scope":%b,"spans":[' % (
        head,
        scope,
    ), b"]}]}]}\n"


def encode_line(record: SpanRecord, frame: tuple[bytes, bytes]) -> bytes:
    """A span in the frame of its resource: a line, with its end."""
    span: dict[str, Any] = {
        "traceId": record.trace_id,
        "spanId": record.span_id,
        "parentSpanId": record.parent_id,
        "name": record.name[:MAX_TEXT],
        "kind": int(record.kind),
        "startTimeUnixNano": str(record.start_ns),
        "endTimeUnixNano": str(record.end_ns),
        "attributes": _attributes(record.attributes),
    }
    if record.dropped:
        span["droppedAttributesCount"] = record.dropped
    if record.events:
        span["events"] = [{"timeUnixNano": str(event.time_ns), "name": event.name} for event in record.events]
    if record.error is not None:
        span["status"] = {"code": _ERROR, "message": record.error[:MAX_TEXT]}
    return frame[0] + _encode(span) + frame[1]


def _attributes(attributes: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value[:MAX_TEXT]}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [{"stringValue": item[:MAX_TEXT]} for item in value]}}


# --- From JSON.


def decode_line(line: bytes | memoryview) -> list[SpanRecord]:
    """The spans of one line. Raises MalformedLine."""
    try:
        return list(_spans(msgspec.json.decode(line)))
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as fault:
        raise MalformedLine(f"not a line of spans: {fault}") from fault


def _spans(data: dict[str, Any]) -> Iterator[SpanRecord]:
    for group in data["resourceSpans"]:
        origin = _read_attributes(group.get("resource", {}).get("attributes", ()))
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                status = span.get("status", {})
                yield SpanRecord(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    name=span["name"],
                    kind=_kind(span.get("kind", 0)),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                    service=str(origin.get(names.SERVICE_NAME, "")),
                    instance=str(origin.get(names.SERVICE_INSTANCE_ID, "")),
                    attributes=_read_attributes(span.get("attributes", ())),
                    events=[Event(int(event["timeUnixNano"]), event["name"]) for event in span.get("events", ())],
                    error=status.get("message", "") if status.get("code") == _ERROR else None,
                    dropped=span.get("droppedAttributesCount", 0),
                )


def _read_attributes(pairs: Any) -> dict[str, Value]:
    return {pair["key"]: _read_value(pair["value"]) for pair in pairs}


def _read_value(value: dict[str, Any]) -> Value:
    for key, content in value.items():
        match key:
            case "stringValue" | "boolValue" | "doubleValue":
                return content  # type: ignore[no-any-return]
            case "intValue":
                return int(content)
            case "arrayValue":
                return [str(_read_value(item)) for item in content.get("values", ())]
    return ""


def _kind(number: int) -> Kind:
    return Kind(number) if 1 <= number <= 5 else Kind.INTERNAL


# --- From the collector's messages.


def read_export(request: ExportTraceServiceRequest) -> Iterator[tuple[dict[str, Value], SpanRecord]]:
    """Each span of an export call, with the attributes of its resource."""
    for group in request.resource_spans:
        origin = _read_pairs(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield (
                    origin,
                    SpanRecord(
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        name=span.name,
                        kind=_kind(span.kind),
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        service=str(origin.get(names.SERVICE_NAME, "")),
                        instance=str(origin.get(names.SERVICE_INSTANCE_ID, "")),
                        attributes=_read_pairs(span.attributes),
                        events=[Event(event.time_unix_nano, event.name) for event in span.events],
                        error=span.status.message if span.status.code == _ERROR else None,
                        dropped=span.dropped_attributes_count,
                    ),
                )


def _read_pairs(pairs: Any) -> dict[str, Value]:
    typed: list[KeyValue] = pairs
    return {pair.key: _read_any(pair.value) for pair in typed}


def _read_any(value: AnyValue) -> Value:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "array_value":
            return [str(_read_any(item)) for item in value.array_value.values]
        case _:  # bytes and maps: no span of ours or of Envoy's has them
            return ""
