"""Header blocks (HPACK, RFC 7541): written without state, read with what was read before.

Both are what a call costs most here, were they done in full: Python's `hpack` takes 2 µs per field.
"""

import base64
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from hpack import Decoder

from libs.streams.call import Ended, Headers, Metadata

HEADER_BYTES = 16_384
"""Of one call's header block, at most; a call that has more is refused."""
BLOCK_BYTES = 128 * 1024
"""Of one header block, at most, before the connection ends: above what any proxy lets through (Envoy: 60 KiB)."""
MESSAGE_CHARACTERS = 1024
"""Of a status's text."""
_KNOWN_BLOCKS = 64


class HeaderReader:
    """A connection's side of HPACK.

    A block that was read without changing the table reads the same as long as the table stands. The calls of one
    client mostly differ in nothing but such blocks, so they are remembered: at most 64 of them.
    """

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=BLOCK_BYTES)
        self._known: dict[bytes, Headers] = {}
        self._newest: Any = None
        self._size = (0, 0)

    def read(self, block: bytes) -> Headers:
        """Raises hpack.HPACKError."""
        if (known := self._known.get(block)) is not None:
            return known
        headers: dict[str, str] = {}
        for name, value in self._decoder.decode(block, raw=True):
            key, text = str(name, "latin-1"), str(value, "latin-1")
            # A proxy may write it with a comma, as well: whoever reads only the first, or only the last, can be told
            # something else than who stands in front.
            headers[key] = f"{headers[key]},{text}" if key in headers else text
        table = self._decoder.header_table
        entries = table.dynamic_entries
        newest, size = (entries[0] if entries else None), (len(entries), table.maxsize)
        if newest is not self._newest or size != self._size:
            self._known.clear()
            self._newest, self._size = newest, size
        elif len(self._known) < _KNOWN_BLOCKS:
            self._known[block] = headers
        return headers


def _text(value: str) -> bytes:
    data = value.encode("latin-1", "replace")
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    length, rest = bytearray(b"\x7f"), size - 127  # an integer with a prefix of seven bits (section 5.1)
    while rest >= 128:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    return bytes(length) + data


def written(fields: Iterable[tuple[str, str]]) -> bytes:
    """A block of literals that no table remembers (section 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


TAKEN = b"\x88" + written([("content-type", "application/grpc")])
"""In front of a server's messages: :status 200, index 8 of the static table."""
REFUSED = written([(":status", "415")])
"""For whoever does not speak gRPC."""


def fields_of(metadata: Metadata) -> Iterable[tuple[str, str]]:
    """As headers carry it."""
    for name, value in metadata:
        yield name, value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("=")


def trailers(ended: Ended) -> bytes:
    """Behind a server's messages."""
    if not ended.details and not ended.metadata:
        return written([("grpc-status", str(ended.code.value[0]))])
    fields = [("grpc-status", str(ended.code.value[0]))]
    if ended.details:
        said = quote(ended.details[:MESSAGE_CHARACTERS], safe=" !#$&'()*+,/:;=?@[]\"<>^`{|}~")
        fields.append(("grpc-message", said))
    return written([*fields, *fields_of(ended.metadata)])
