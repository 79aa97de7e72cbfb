"""Frames of HTTP/2 (RFC 9113), as many kinds as a gRPC stream needs, as bytes."""

from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = 9
"""Bytes in front of each frame's payload."""
FRAME_BYTES = 16_384
"""Payload of one frame, at most: what both sides take without being asked (section 4.2)."""
DEFAULT_WINDOW = 65_535
MOST_STREAM = 2**31 - 1
"""The highest number that a stream can have."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = range(1, 6)
MAX_HEADER_LIST_SIZE = 6

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11


class Fault(Exception):
    """The other side broke the protocol: the connection ends with this code."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """What stands in front of a payload of `size` bytes."""
    return (size << 48 | kind << 40 | flags << 32 | stream).to_bytes(HEAD, "big")


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values)
    return head(len(payload), SETTINGS, 0, 0) + payload


def window_update(stream: int, more: int) -> bytes:
    """The other side may send so many bytes more; stream 0 is the whole connection."""
    return head(4, WINDOW_UPDATE, 0, stream) + more.to_bytes(4, "big")


def reset(stream: int, code: int) -> bytes:
    """Ends a stream at once."""
    return head(4, RST_STREAM, 0, stream) + code.to_bytes(4, "big")


def goaway(last: int, code: int, said: str) -> bytes:
    """The last frame of a connection: which streams were seen, and why it ends."""
    payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + said.encode()[:256]
    return head(len(payload), GOAWAY, 0, 0) + payload


def headers(stream: int, block: bytes, *, end: bool) -> bytes:
    """A header block, over as many frames as it needs."""
    parts = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)] or [b""]
    last = len(parts) - 1
    return b"".join(
        head(
            len(part),
            CONTINUATION if index else HEADERS,
            (END_HEADERS if index == last else 0) | (END_STREAM if end and not index else 0),
            stream,
        )
        + part
        for index, part in enumerate(parts)
    )


def unpadded(kind: int, flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without padding and priority. Raises Fault."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise Fault(PROTOCOL_ERROR, "a padded frame without its padding's length")
        start, end = 1, end - payload[0]
    if kind == HEADERS and flags & WITH_PRIORITY:
        start += 5
    if start > end:
        raise Fault(PROTOCOL_ERROR, "more padding than frame")
    return payload[start:end]


def settings_of(payload: bytes) -> list[tuple[int, int]]:
    """What a SETTINGS frame says. Raises Fault."""
    if len(payload) % 6:
        raise Fault(FRAME_SIZE_ERROR, "SETTINGS of a broken length")
    return [
        (int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big"))
        for at in range(0, len(payload), 6)
    ]


def number_of(payload: bytes) -> int:
    """The one number of a WINDOW_UPDATE or RST_STREAM frame. Raises Fault."""
    if len(payload) != 4:
        raise Fault(FRAME_SIZE_ERROR, "a frame of one number that has not four bytes")
    return int.from_bytes(payload, "big")
