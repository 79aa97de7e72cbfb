"""Server-sent events, as far as OpenAI's API uses them: `data:` lines. Pure.

The format: WHATWG, HTML, "Server-sent events".
"""

LINE_BYTES = 1024 * 1024
"""A longer line is not read: an endpoint must not fill the memory."""


class LineTooLong(Exception):
    """A line is longer than LINE_BYTES."""


class Events:
    """Cuts a stream of bytes into the data of events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._bytes = 0

    def push(self, data: bytes) -> list[bytes]:
        """The data of each event that is whole now. Raises LineTooLong, for an event as for a line."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        found = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._bytes += len(line)
            elif not line and self._data:
                found.append(b"\n".join(self._data))
                self._data, self._bytes = [], 0
            # Comments keep the connection alive; other fields mean nothing here.
        if len(self._rest) + self._bytes > LINE_BYTES:
            raise LineTooLong
        return found
