"""Many answers on one stream.

A connection is one Session call: one task writes what has accumulated, and its parent deals out what comes.
When it breaks, every answer on it fails with StageUnavailable, and answer.py sends it again on the next one.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc as rpc

from . import wire
from .errors import HeadraceError, InternalError, StageUnavailable, from_rpc_error, from_status
from .transport import Attempt, CallMetadata, deadline_passed, refuse_foreign_cancel
from .values import Chunk, Finish, ToolStep

DRAINING = "draining"
"""In the metadata of the error with which a process that ends hands back what it has not begun, or cannot end."""
MESSAGE_BYTES = 1024 * 1024
"""A message is closed when it has this much; gRPC's limit is 4 MiB."""
GRACE = 1.0
"""Seconds that the mesh gets to say by itself that a deadline has passed."""


class SessionTransport:
    """Places answers on one shared stream, opened with the first one and again after a break.

    Owns the streams' tasks.

    Args:
        max_running: Answers on the stream at once; more wait in `start`, first come, first served.
    """

    def __init__(self, stub: "rpc.InferenceServiceAsyncStub", metadata: CallMetadata, max_running: int) -> None:
        self._stub = stub
        self._metadata = metadata
        self._free = asyncio.Semaphore(max_running)
        self._connection: _Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self, request: pb.GenerateRequest, timeout: float | None) -> Attempt:
        try:
            async with asyncio.timeout(timeout):
                await self._free.acquire()
        except TimeoutError:
            raise deadline_passed(timeout or 0.0) from None
        if self._closed:
            self._free.release()
            raise RuntimeError("the session is closed")
        if self._connection is None or self._connection.broken or self._connection.leaving:
            self._connection = _Connection(self._stub.Session(metadata=self._metadata), self._free)
            task = asyncio.create_task(self._connection.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return self._connection.start(request, timeout)

    async def close(self) -> None:
        """Cancels what runs and waits for the stream's tasks. Idempotent."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:  # a task that was cancelled before its first step has not done this
            self._connection.end(StageUnavailable("the session was closed", code=14))


class _Connection:
    """One Session call."""

    def __init__(
        self, call: "aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]", free: asyncio.Semaphore
    ) -> None:
        self.broken = False
        self.leaving = False
        """The process behind it ends: what runs goes on, and what is new belongs on another connection."""
        self._call = call
        self._free = free
        self._running: dict[int, _SessionAttempt] = {}
        self._last_id = 0
        # Bounded: at most one entry per running answer.
        self._generates: dict[int, pb.SessionGenerate] = {}
        self._cancels: list[int] = []
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Writes and reads until the call ends or this is cancelled; then nothing runs on it any more."""
        error: HeadraceError = StageUnavailable("the session was closed", code=14)
        writer = asyncio.create_task(self._write())
        try:
            error = await self._read()
        finally:
            self.end(error)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def start(self, request: pb.GenerateRequest, timeout: float | None) -> "_SessionAttempt":
        """Starts an answer. The caller holds a place of the semaphore; it is given back with the end."""
        self._last_id += 1
        attempt = _SessionAttempt(self, self._last_id, request, timeout)
        self._running[attempt.id] = attempt
        self._generates[attempt.id] = pb.SessionGenerate(id=attempt.id, request=request)
        self._work.set()
        return attempt

    def cancel(self, attempt_id: int) -> None:
        """Asks the mesh to stop an answer. Its place stays taken until the mesh confirms the end."""
        if self._generates.pop(attempt_id, None) is not None:  # it never left
            del self._running[attempt_id]
            self._free.release()
        elif attempt_id in self._running:
            self._cancels.append(attempt_id)
            self._work.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._work.wait()
                await self._call.write(self._take())
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call is over; the reader learns why

    def _take(self) -> pb.SessionRequest:
        """What has accumulated, up to the size of a message."""
        message = pb.SessionRequest(cancels=self._cancels)
        self._cancels.clear()
        size = 0
        for generate in self._generates.values():
            size += generate.ByteSize()
            if message.generates and size > MESSAGE_BYTES:
                break
            message.generates.append(generate)
        for generate in message.generates:
            del self._generates[generate.id]
        if not self._generates:
            self._work.clear()
        return message

    async def _read(self) -> HeadraceError:
        """Deals out what comes; returns why it ended."""
        try:
            while isinstance(message := await self._call.read(), pb.SessionResponse):
                self._deal(message)
        except aio.AioRpcError as broken:
            return from_rpc_error(broken)
        except (KeyError, IndexError):
            return InternalError("the mesh sent what this session did not ask for", code=13)
        except asyncio.CancelledError:
            try:
                refuse_foreign_cancel()
            except StageUnavailable as cancelled:
                return cancelled
            raise
        return StageUnavailable("the session ended before its answers did", code=14)

    def _deal(self, message: pb.SessionResponse) -> None:
        token, log_prob = 0, 0
        ids, log_probs = message.token_ids, message.log_probs
        for note in message.notes:
            attempt = self._running[note.id]
            if note.restart:
                attempt.restart()
            if note.HasField("tool_step"):
                attempt.tool_step(wire.tool_step(note.tool_step))
            attempt.note(note.model_version, note.waiting)
        for n, attempt_id in enumerate(message.ids):
            attempt, count = self._running[attempt_id], message.counts[n]
            text = message.texts[n] if message.texts else ""
            new_ids: Sequence[int] = ()
            new_log_probs: Sequence[float] = ()
            if attempt.wants_ids:
                new_ids = ids[token : token + count]
                token += count
            if attempt.wants_log_probs:
                new_log_probs = log_probs[log_prob : log_prob + count]
                log_prob += count
            attempt.add(text, new_ids, new_log_probs)
        for end in message.ends:
            attempt = self._running.pop(end.id)
            self._free.release()
            attempt.request_id = end.request_id
            if end.HasField("finish"):
                attempt.end(wire.finish(end.finish))
            else:
                error = from_status(end.failure.code, end.failure.message, end.failure.details)
                self.leaving = self.leaving or DRAINING in error.metadata
                attempt.end(error)

    def end(self, error: HeadraceError) -> None:
        """Ends the call, and every answer on it with this error. Idempotent."""
        self.broken = True
        self._call.cancel()
        for attempt in self._running.values():
            self._free.release()
            attempt.end(error)
        self._running.clear()
        self._generates.clear()


class _SessionAttempt:
    """One answer on a connection. What comes waits here, merged: at most the tokens of the answer."""

    def __init__(self, connection: _Connection, attempt_id: int, request: pb.GenerateRequest, timeout: float | None):
        self.id = attempt_id
        self.request_id = ""
        self.model_version = ""
        self.wants_ids = request.output_form in (pb.OUTPUT_FORM_TOKEN_IDS, pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS)
        self.wants_log_probs = request.log_probs
        self._waiting = ""
        self._before: deque[Chunk] = deque()
        """What comes in front of the text and tokens here: at most a restart, and the contract's tool calls."""
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._log_probs: list[float] = []
        self._connection = connection
        self._end: Finish | HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            request.timeout.FromMicroseconds(max(1, int(timeout * 1e6)))
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout + GRACE, self._late, timeout)

    async def next(self) -> Chunk:
        while not (self._before or self._text or self._token_ids or self._waiting or self._end):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._before:
            return self._before.popleft()
        waiting, self._waiting = self._waiting, ""
        if waiting and not (self._text or self._token_ids or self._end):
            return Chunk(waiting=waiting)
        end = self._end
        if isinstance(end, HeadraceError) and not (self._text or self._token_ids):
            raise end
        return self._take(end if isinstance(end, Finish) else None)

    def _take(self, finish: Finish | None = None) -> Chunk:
        chunk = Chunk("".join(self._text), tuple(self._token_ids), tuple(self._log_probs), finish)
        self._text, self._token_ids, self._log_probs = [], [], []
        return chunk

    def cancel(self) -> None:
        if self._end is None:
            self.end(StageUnavailable("the answer was given up", code=14))
            self._connection.cancel(self.id)

    def add(self, text: str, token_ids: Sequence[int], log_probs: Sequence[float]) -> None:
        """Something came. After the end it is dropped."""
        if self._end is not None:
            return
        if text:
            self._text.append(text)
        self._token_ids += token_ids
        self._log_probs += log_probs
        self._wake()

    def note(self, model_version: str, waiting: str) -> None:
        """News of its way; each is empty when there is none."""
        self.model_version = model_version or self.model_version
        self._waiting = waiting or self._waiting
        self._wake()

    def restart(self) -> None:
        """The answer begins anew; what has not been read of it is void."""
        self._take()
        self._before = deque(chunk for chunk in self._before if chunk.tool_step is not None)
        self._before.append(Chunk(restart=True))
        self._wake()

    def tool_step(self, step: ToolStep) -> None:
        """A tool call goes on, behind the text so far."""
        if self._text or self._token_ids:
            self._before.append(self._take())
        self._before.append(Chunk(tool_step=step))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, how: Finish | HeadraceError) -> None:
        """The answer is over; the first end counts."""
        if self._end is None:
            self._end = how
            if self._timer is not None:
                self._timer.cancel()
            self._wake()

    def _late(self, timeout: float) -> None:
        self._connection.cancel(self.id)
        self.end(deadline_passed(timeout))
