"""A stream to another process that stands as long as its owner, through every break."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

import structlog

from libs.streams.client import Dialer, StreamRefused
from libs.streams.stream import Stream
from libs.tasks import Tasks
from libs.turns import until_next

log = structlog.get_logger()

_BACKOFF_S = (0.05, 1.0)
"""First and longest wait before a stream is opened again; grows by half, with jitter."""
_FOLLOW_S = 0.5
"""How often a stream looks whether it still goes to the right process."""

Endpoint = Callable[[], str | None]
"""host:port of the other process's streams, as the registry knows it now; None while it knows none. When it becomes
another, the stream moves there."""


class Talk(Protocol):
    """What is said on the stream, in bytes. All calls are synchronous and come from one task at a time."""

    def on_up(self) -> None:
        """The stream stands; `take` comes next."""
        ...

    def take(self) -> bytes | None:
        """The next message, with all that has accumulated; None when there is nothing to say."""
        ...

    def on_message(self, data: bytes) -> None:
        """The other side says something."""
        ...

    def on_down(self, reason: str) -> None:
        """The stream broke. Comes once for each `on_up`."""
        ...


class StandingStream:
    """Keeps one stream up and writes to it whatever `talk` has to say.

    A message leaves at the end of the loop's turn in which there was something to say, with all that came in the same
    turn; while the stream takes no more, what `talk` has to say accumulates there. Start it on a running event loop.

    Args:
        name: For the logs.
        path: /package.Service/Method
        tasks: Owns the stream's task.
        follow: Whether `endpoint` may become another one while the stream stands.
    """

    def __init__(
        self, name: str, talk: Talk, path: str, dialer: Dialer, endpoint: Endpoint, tasks: Tasks, *, follow: bool = True
    ) -> None:
        self._name = name
        self._talk = talk
        self._path = path
        self._dialer = dialer
        self._endpoint = endpoint
        self._follow = follow
        self._stream: Stream | None = None
        self._task = tasks.spawn(self._run(), name)

    def wake(self) -> None:
        """There is something to say."""
        if self._stream is not None:
            self._stream.wake()

    def restart(self, why: str = "opened anew") -> None:
        """Breaks the stream; it is opened again soon."""
        if self._stream is not None:
            self._stream.cancel(why)

    def close(self) -> None:
        """Ends the stream for good."""
        self._task.cancel()

    async def _run(self) -> None:
        backoff = _BACKOFF_S[0]
        while True:
            if (endpoint := self._endpoint()) and await self._converse(endpoint):
                backoff = _BACKOFF_S[0]
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311  jitter, not a secret
            backoff = min(backoff * 1.5, _BACKOFF_S[1])

    async def _converse(self, endpoint: str) -> bool:
        """One stream, from its start to its end; whether it stood at all."""
        try:
            stream = await self._dialer.open(endpoint, self._path)
        except StreamRefused:
            return False
        reason = "closed on this side"
        self._stream = stream
        log.info("stream up", stream=self._name, endpoint=endpoint)
        try:
            self._talk.on_up()
            stream.listen(self._hear, self._say)
            stream.wake()
            ended = asyncio.ensure_future(stream.ended())
            while not (await asyncio.wait({ended}, timeout=until_next(_FOLLOW_S) if self._follow else None))[0]:
                # A registry that knows no such process is no reason to leave one that answers.
                if self._endpoint() not in (None, endpoint):
                    stream.cancel("another process has its place")
            reason = str(ended.result())
        finally:
            self._stream = None
            stream.cancel()
            log.info("stream down", stream=self._name, endpoint=endpoint, reason=reason)
            self._talk.on_down(reason)
        return True

    def _hear(self, data: bytes) -> None:
        try:
            self._talk.on_message(data)
        except Exception as error:  # a message that cannot be read: the stream breaks, it must not fall silent
            log.exception("stream reader failed", stream=self._name)
            self.restart(f"the reader failed: {type(error).__name__}")

    def _say(self) -> None:
        try:
            while (stream := self._stream) is not None and stream.room and (message := self._talk.take()) is not None:
                stream.write(message)
        except Exception as error:  # what cannot be written: the stream breaks, it must not fall silent
            log.exception("stream writer failed", stream=self._name)
            self.restart(f"the writer failed: {type(error).__name__}")
