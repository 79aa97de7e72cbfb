"""A span as a plain value, and the W3C trace context that ties spans of several processes together."""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec

Value = str | bool | int | float | Sequence[str]
"""The value of an attribute."""

MAX_TEXT = 1024
"""Characters of a name or value that are kept."""


class Kind(IntEnum):
    """What a span is to its neighbours; the numbers are OTLP's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Event(msgspec.Struct, frozen=True):
    """Something that happened within a span."""

    time_ns: int
    name: str


class SpanRecord(msgspec.Struct):
    """One span, as it is exported, stored and shown. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    name: str
    kind: Kind
    start_ns: int
    """Unix time in nanoseconds."""
    end_ns: int
    service: str
    instance: str
    attributes: dict[str, Value] = {}
    events: list[Event] = []
    error: str | None = None
    """None unless the span failed; then what a person is to know, perhaps nothing."""
    dropped: int = 0
    """Attributes that did not fit any more."""

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return (self.end_ns - self.start_ns) / 1e9


class TraceContext(NamedTuple):
    """What a traceparent says. A tuple, as these are made on the hot path and frozen dataclasses are slow."""

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller records its spans."""
        return bool(self.flags & 1)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
).fullmatch

_NOT_SAMPLED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[02]", re.ASCII).fullmatch


def is_unsampled(text: str) -> bool:
    """Whether this is a traceparent that says: do not record. Three times as fast as parsing it."""
    return _NOT_SAMPLED(text) is not None


def parse_traceparent(text: str) -> TraceContext | None:
    """Reads a traceparent (W3C Trace Context, level 2); None for what is not one.

    Of the flags, "sampled" and "random" are kept. Later versions are read as this one, as the standard asks.
    """
    match = _TRACEPARENT(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if rest and version == "00":
        return None
    return TraceContext(trace_id, span_id, int(flags, 16) & 3)
