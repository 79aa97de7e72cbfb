"""Starting a child process with one end of a socket pair, and ending it."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from services.executor.child.wire import HEAD, MOST_BYTES

GRACE_S = 5.0
"""How long a child may take to notice that its socket has closed; a step takes less. Then SIGKILL."""

_ROOT = Path(__file__).parents[3]


class ChildProcess:
    """A running child and the asyncio end of its socket.

    What is sent waits in the transport while the child computes; its owner bounds it by bounding the works.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(
        cls, module: str, *arguments: str, python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> "ChildProcess":
        """Runs `python -m module FD arguments…`. Its standard error is ours.

        Args:
            python: The interpreter; one of another environment finds our modules, and only its own packages.
            environment: Variables beside those of this process.

        Raises OSError when the interpreter cannot be run.
        """
        ours, theirs = socket.socketpair()
        # Popen rather than asyncio's or uvloop's: it forks by vfork, which runs no fork handlers of gRPC. On
        # this thread rather than in an executor: the kernel kills the child with the thread that started it.
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: ASYNC220, S603
                    [python, "-m", module, str(theirs.fileno()), *arguments],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'protos'}", **(environment or {})},
                )  # fmt: skip
            except OSError:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: bytes) -> None:
        """Queues a message. Nothing happens when the child is gone: `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(message)

    async def receive(self) -> bytes | None:
        """The next message; None when the child has gone."""
        try:
            (length,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
            if length > MOST_BYTES:
                return None
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def close(self, kill: bool = False) -> int:
        """Ends the child and returns its exit status, negative for a signal. Idempotent."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if kill:
            self._process.kill()
        waited = asyncio.get_running_loop().time() + GRACE_S
        while (status := self._process.poll()) is None:  # polled: a thread in wait() could not be cancelled
            await asyncio.sleep(0.01)
            if asyncio.get_running_loop().time() > waited:
                self._process.kill()
        return status
