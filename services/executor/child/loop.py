"""The loop of a child whose engine is asynchronous: one task per work, tokens of a turn in one message.

`serve` is the whole main of such a child. An engine is an AsyncModel; everything else is here: the socket, the
works (services.executor.stream.runner), block events and state beside their tokens, questions about adapters,
and the end, however it comes. See services.executor.child.inbox for engines that are stepped.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from libs.clock import SystemClock
from libs.lane.work import Outcome, Work
from services.executor.child.inbox import die_with_parent
from services.executor.child.wire import (
    HEAD,
    MOST_BYTES,
    AdapterDone,
    Broken,
    Cancel,
    Check,
    CheckDone,
    Ended,
    LoadAdapter,
    LoadRefused,
    Ready,
    Start,
    Stepped,
    UnloadAdapter,
    decode_up,
    encode,
)
from services.executor.engine import BlockEvent, LoadFailed, RunnerStats, SelfCheckFailed, Step
from services.executor.stream.runner import StreamRunner
from services.executor.stream.source import Piece

MOST_UNREAD_BYTES = 1 << 20
"""What may wait for a parent that does not read. Beyond it no work is read from the engine, whose own buffers
are bounded by each work's max_tokens."""

L = TypeVar("L", bound=msgspec.Struct)


class AsyncModel(Protocol):
    """A loaded model, and how it is loaded. All calls come from one event loop."""

    async def load(self) -> Ready:
        """Loads it and asks it a question. May block the loop: nobody else is on it yet. Raises LoadFailed."""
        ...

    def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        """Runs a work; see services.executor.stream.source.Source. Closing the iterator aborts it."""
        ...

    def events(self) -> AsyncIterator[Sequence[BlockEvent]]:
        """What changes in the prefix cache, as long as the model lives; nothing in it says that the stats have
        changed. An exception that leaves it is the end of the model: its text goes to the operator."""
        ...

    def stats(self) -> RunnerStats:
        """What is known of the engine now. `waiting` are works that are open and not in its batch."""
        ...

    async def load_adapter(self, adapter: str, path: str) -> None:
        """See services.executor.engine.Runner. Raises LoadFailed."""
        ...

    async def unload_adapter(self, adapter: str) -> None:
        """See services.executor.engine.Runner."""
        ...

    async def check(self) -> None:
        """See Runner.self_check. Raises SelfCheckFailed."""
        ...

    async def close(self) -> None:
        """Gives everything back."""
        ...


def serve(settings: type[L], build: Callable[[L], AsyncModel]) -> int:
    """Runs a child to its end and returns its exit status. Reads the socket's number from the command line.

    Args:
        settings: The message that comes first and says what to load.
        build: Makes the model of it, without loading anything.
    """
    die_with_parent()
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    return asyncio.run(_serve(socket.socket(fileno=descriptor), settings, build))


async def _serve(connection: socket.socket, settings: type[L], build: Callable[[L], AsyncModel]) -> int:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.transport.set_write_buffer_limits(high=MOST_UNREAD_BYTES)
    try:
        model = build(msgspec.msgpack.decode(await receive(reader), type=settings))
        try:
            ready = await model.load()
        except LoadFailed as error:
            writer.write(encode(LoadRefused(str(error))))
            await writer.drain()
            return 1
        try:
            return await AsyncChild(reader, writer, model, ready).run()
        finally:
            await model.close()
    except (asyncio.IncompleteReadError, OSError):
        return 0  # the parent has gone
    finally:
        writer.close()


class AsyncChild:
    """The loop around one loaded model.

    A parent that does not read stops, first, the reading of answers and of block events; the engine goes on
    until its own buffers are full.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: AsyncModel, ready: Ready
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._model = model
        self._ready = ready
        self._events: list[BlockEvent] = []
        self._said = RunnerStats()
        self._runner = StreamRunner(
            self, ready.capacity, ready.capabilities, self, SystemClock(), complete=self._complete
        )

    async def run(self) -> int:
        """Until the parent goes, or the model dies: an exit status."""
        self._send(self._ready)
        died: list[ModelDied] = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(), name="block events")
                while True:
                    self._hear(decode_up(await receive(self._reader)), group)
        except* (asyncio.IncompleteReadError, OSError):
            pass  # the parent has gone
        except* ModelDied as several:
            died = [error for error in several.exceptions if isinstance(error, ModelDied)]
        finally:
            await self._runner.close()
        for error in died[:1]:
            self._send(Broken(str(error)))
            with contextlib.suppress(OSError):
                await self._writer.drain()
        return 1 if died else 0

    def _hear(self, message: object, group: asyncio.TaskGroup) -> None:
        if isinstance(message, Start):
            self._runner.submit(message.work_id, message.work)
        elif isinstance(message, Cancel):
            self._runner.cancel(message.work_id)
        elif isinstance(message, LoadAdapter | UnloadAdapter):
            group.create_task(self._adapter(message), name=f"adapter {message.adapter}")
        elif isinstance(message, Check):
            group.create_task(self._check(), name="check")

    async def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        """A work of the model, read only while the parent reads."""
        pieces = self._model.open(work_id, work)
        try:
            async for piece in pieces:
                yield piece
                await self._writer.drain()
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()

    def on_step(self, step: Step) -> None:
        """Sends it."""
        frame, stats = step.frame, step.stats
        self._send(
            Stepped(
                work_ids=frame.work_ids,
                offsets=frame.offsets,
                counts=frame.counts,
                token_ids=frame.token_ids,
                log_probs=frame.log_probs,
                started=step.started,
                ended=[_ended(work_id, outcome) for work_id, outcome in step.outcomes],
                events=[(event.kind, list(event.hashes)) for event in step.events],
                stats=(stats.running, stats.waiting, stats.blocks_used, stats.blocks_cached),
                swaps=step.swaps,
            )
        )

    def on_broken(self, reason: str) -> None:
        """Never called: what breaks is the model, and its `events` tell."""

    def _complete(self, step: Step) -> None:
        """Adds what the engine has told since the last step."""
        step.events += self._events
        self._events.clear()
        engine, works = self._model.stats(), step.stats
        self._said = engine
        waiting = min(engine.waiting, works.running)  # the engine's are a little older
        step.stats = RunnerStats(
            works.running - waiting, works.waiting + waiting, engine.blocks_used, engine.blocks_cached
        )

    async def _watch(self) -> None:
        try:
            async for events in self._model.events():
                self._events += events
                if self._events or _differ(self._model.stats(), self._said):
                    self._runner.tell()
                await self._writer.drain()
        except OSError:
            raise
        except Exception as error:
            raise ModelDied(str(error) or type(error).__name__) from error
        raise ModelDied("the engine has ended")

    async def _adapter(self, message: LoadAdapter | UnloadAdapter) -> None:
        fault = ""
        try:
            if isinstance(message, LoadAdapter):
                await self._model.load_adapter(message.adapter, message.path)
            else:
                await self._model.unload_adapter(message.adapter)
        except LoadFailed as error:
            fault = str(error)
        self._send(AdapterDone(message.adapter, fault))

    async def _check(self) -> None:
        fault = ""
        try:
            await self._model.check()
        except SelfCheckFailed as error:
            fault = str(error)
        self._send(CheckDone(fault))

    def _send(self, message: msgspec.Struct) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(message))


class ModelDied(Exception):
    """The model's `events` have ended."""


def _differ(one: RunnerStats, other: RunnerStats) -> bool:
    return (one.waiting, one.blocks_used, one.blocks_cached) != (other.waiting, other.blocks_used, other.blocks_cached)


def _ended(work_id: int, outcome: Outcome) -> Ended:
    finish, error = outcome.finish, outcome.error
    how = finish.name.lower() if finish is not None else error.reason if error is not None else ""
    message = error.message if error is not None else ""
    wrong = [(violation.subject, violation.description) for violation in error.violations] if error is not None else []
    return Ended(work_id, how, message, outcome.output_tokens, outcome.cached_tokens, wrong)


async def receive(reader: asyncio.StreamReader) -> bytes:
    """The next message. Raises IncompleteReadError or OSError when the parent has gone."""
    (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
    if length > MOST_BYTES:
        raise ConnectionError("a message longer than any")
    return await reader.readexactly(length)
