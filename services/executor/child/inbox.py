"""The child's end of the socket pair: blocking, because the child has nothing else to do."""

import ctypes
import os
import select
import signal
import socket
from collections.abc import Iterator

from services.executor.child.wire import HEAD, MOST_BYTES

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel for SIGKILL when the parent dies, and for silence on Ctrl-C, which is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ParentGone(Exception):
    """The parent has closed its end, or died."""


class Inbox:
    """Reads messages from the parent and writes messages to it.

    A write blocks while the parent does not read: the engine then waits for its host, and nothing piles up.
    What the parent sends is bounded by the works that its runner accepts.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._buffer = bytearray()

    @classmethod
    def from_descriptor(cls, descriptor: int) -> "Inbox":
        """Takes over an inherited socket."""
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor))

    def receive(self, wait: bool) -> Iterator[bytes]:
        """The messages that are there, waiting for the first one if asked to. Raises ParentGone."""
        while True:
            found = False
            while (message := self._next()) is not None:
                found = True
                yield message
            if found:
                wait = False
            if not select.select([self._socket], [], [], None if wait else 0)[0]:
                return
            data = self._socket.recv(1 << 20)
            if not data:
                raise ParentGone
            self._buffer += data

    def send(self, message: bytes) -> None:
        """Writes a message. Raises ParentGone."""
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise ParentGone from error

    def _next(self) -> bytes | None:
        if len(self._buffer) < HEAD.size:
            return None
        (length,) = HEAD.unpack_from(self._buffer)
        if length > MOST_BYTES:
            raise ParentGone
        end = HEAD.size + length
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[HEAD.size : end])
        del self._buffer[:end]
        return message
