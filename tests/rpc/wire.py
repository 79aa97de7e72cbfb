"""HTTP/2 by hand, for clients that no library would be."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

from libs.streams import frames

Seen = tuple[int, int, int, bytes]
"""A frame: its kind, its flags, its stream, its payload."""


@asynccontextmanager
async def raw(endpoint: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says what the test says."""
    reader, writer = await asyncio.open_connection(*endpoint.split(":"))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def take_frame(reader: asyncio.StreamReader) -> Seen:
    """The next frame."""
    head = await reader.readexactly(frames.HEAD)
    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big"), payload


def frames_of(data: bytes) -> Iterator[Seen]:
    """The frames in what was heard."""
    while data:
        after = frames.HEAD + int.from_bytes(data[:3], "big")
        yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[frames.HEAD : after]
        data = data[after:]
