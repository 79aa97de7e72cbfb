"""One gRPC call as bytes on a socket, with headers that no gRPC client would send (RFC 9113, RFC 7541)."""

import re
import socket
import struct
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_STATUS = re.compile(rb"grpc-status[\x01\x02](\d{1,2})")
_MESSAGE = re.compile(rb"grpc-message.([ -~]*)", re.DOTALL)


def call(target: str, path: str, headers: Sequence[tuple[bytes, bytes]], message: bytes = b"") -> tuple[int, str]:
    """The status code and its message, as the server's bytes have them; -1 when it ended the call without any.

    Reads servers that write headers without Huffman coding, as gRPC's own do.
    """
    host, _, port = target.rpartition(":")
    usual = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", target.encode()),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    block = b"".join(_literal(name, value) for name, value in [*usual, *headers])
    framed = b"\x00" + struct.pack(">I", len(message)) + message
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, block)
            + _frame(_DATA, _END_STREAM, 1, framed)
        )
        read = b""
        while not _STATUS.search(read):
            try:
                part = connection.recv(65536)
            except TimeoutError:
                break
            if not part:
                break
            read += part
    found, said = _STATUS.search(read), _MESSAGE.search(read)
    return int(found[1]) if found else -1, said[1].decode() if said else ""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that is not indexed, its name spelled out."""
    return b"\x00" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,))
    out, size = bytearray((127,)), size - 127
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)
