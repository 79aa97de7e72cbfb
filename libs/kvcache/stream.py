"""A stream to the KV-cache manager that stands as long as its owner, through every break."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import structlog
from grpc import aio

from libs.tasks import Tasks

log = structlog.get_logger()

_BACKOFF_S = (0.05, 1.0)
"""First and longest wait before a stream is opened again; grows by half, with jitter."""

_FOLLOW_S = 0.5
"""How often a stream looks whether it still goes to the right manager."""

Request = TypeVar("Request")
Response = TypeVar("Response")
Said = TypeVar("Said", covariant=True)
Heard = TypeVar("Heard", contravariant=True)
Call = aio.StreamStreamCall[Request, Response]

Connect = Callable[[str], aio.Channel]
"""Gives the channel to host:port; the channel is shared and not closed here."""
Endpoint = Callable[[], str | None]
"""The manager's host:port as the registry knows it now; None while it knows none. When it becomes another,
the stream moves there, so that all who ask and all who report agree on one."""


class Talk(Protocol[Said, Heard]):
    """What is said on the stream. All calls are synchronous and come from one task at a time."""

    def on_up(self) -> None:
        """The stream stands; `take` comes next."""
        ...

    def take(self) -> Said | None:
        """The next message, with all that has accumulated; None when there is nothing to say."""
        ...

    def on_message(self, message: Heard) -> None:
        """The manager says something."""
        ...

    def on_down(self) -> None:
        """The stream broke. Comes once for each `on_up`."""
        ...


class StandingStream(Generic[Request, Response]):
    """Keeps one stream up and writes to it whatever `talk` has to say.

    While one write is in flight, what `talk` has to say accumulates there. Start it on a running event loop.

    Args:
        open_call: Begins a call that waits for its channel to be ready: then the stream stands as soon as the
            manager is back, instead of when somebody looks again.
    """

    def __init__(
        self,
        name: str,
        talk: Talk[Request, Response],
        open_call: Callable[[aio.Channel], Any],
        connect: Connect,
        endpoint: Endpoint,
    ) -> None:
        self._name = name
        self._talk = talk
        self._open_call = open_call
        self._connect = connect
        self._endpoint = endpoint
        self._wake = asyncio.Event()
        self._call: Call[Request, Response] | None = None
        self._connected_to = ""
        self._tasks = Tasks()
        self._tasks.spawn(self._run(), name)
        self._tasks.spawn(self._follow(), f"{name} follows")

    def wake(self) -> None:
        """There is something to say."""
        self._wake.set()

    def restart(self) -> None:
        """Breaks the stream; it is opened again soon."""
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        """Ends the stream for good."""
        await self._tasks.close()

    async def _run(self) -> None:
        backoff = _BACKOFF_S[0]
        while True:
            try:
                if (endpoint := self._endpoint()) and await self._converse(endpoint):
                    backoff = _BACKOFF_S[0]
            except Exception:  # a bug in what is said; the next stream starts from nothing
                log.exception("stream failed", stream=self._name)
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311  jitter, not a secret
            backoff = min(backoff * 1.5, _BACKOFF_S[1])

    async def _converse(self, endpoint: str) -> bool:
        """One stream, from its start to its end; whether it stood at all."""
        call: Call[Request, Response] = self._open_call(self._connect(endpoint))
        self._call, self._connected_to = call, endpoint
        writer: asyncio.Task[None] | None = None
        try:
            # Sent by the manager as soon as it has the stream: a channel that connects nowhere sends none.
            await call.initial_metadata()
            if call.done():
                return False
            log.info("stream up", stream=self._name, endpoint=endpoint)
            self._talk.on_up()
            writer = asyncio.create_task(self._write(call), name=f"{self._name} writer")
            while (message := await call.read()) is not aio.EOF:
                self._talk.on_message(message)  # type: ignore[arg-type]  # EOF has no type of its own
        except aio.AioRpcError:
            pass  # the manager went away, or is not there yet
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # else `restart` cancelled the call
        finally:
            self._call = None
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                log.info("stream down", stream=self._name, endpoint=endpoint)
                self._talk.on_down()
        return writer is not None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_S)
            # A registry that knows no manager is no reason to leave one that answers.
            if self._call is not None and self._endpoint() not in (None, self._connected_to):
                self.restart()

    async def _write(self, call: Call[Request, Response]) -> None:
        while True:
            while (message := self._talk.take()) is None:
                self._wake.clear()
                await self._wake.wait()
            try:
                await call.write(message)
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader sees the same end
