"""Runs streams on an event loop: slots, a queue, deadlines, and the steps that listeners are told.

Tokens that arrive in one turn of the loop make one step. Imports nothing that another environment may lack:
the children of engines use it, too.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from libs.clock import Clock
from libs.errors import Cancelled, DeadlinePassed, HeadraceError, InternalError, Overloaded, StageUnavailable
from libs.lane.work import FinishReason, Outcome, Work
from services.executor.engine import Capabilities, Capacity, Listener, RunnerStats, Step
from services.executor.stream.source import CLOSE_S, Piece, Source

log = logging.getLogger(__name__)

TIMER_S = (0.001, 3600.0)
"""Shortest and longest wait of a deadline's timer, which then looks at the clock again: the clock that counts is
not the loop's, and loops bound their timers."""


class _Run:
    """A work in the runner."""

    __slots__ = ("cached_tokens", "done", "limit", "live", "log_probs", "started", "task", "timer", "work", "work_id")

    def __init__(self, work_id: int, work: Work) -> None:
        self.work_id = work_id
        self.work = work
        self.live = True
        """Whether its outcome is still awaited."""
        self.task: asyncio.Task[None] | None = None
        """Its stream; None while it waits for a slot."""
        self.timer: asyncio.TimerHandle | None = None
        """Of its deadline."""
        self.started = False
        self.done = len(work.resumed)
        """Tokens of the answer so far."""
        self.limit = work.sampling.max_tokens
        self.log_probs = work.log_probs
        self.cached_tokens = 0


class StreamRunner:
    """See services.executor.engine.Runner; its owner adds adapters and the self-check, for instance by
    inheritance, with `ask`.

    Holds at most `most_works` works, running and waiting; a further one ends at once with Overloaded. A work
    keeps its slot until its stream has closed, CLOSE_S at most (source.py).

    Args:
        source: Where the streams come from.
        clock: For deadlines.
        complete: Told of each step before the listener is; may add events, stats and swaps to it.
    """

    def __init__(
        self,
        source: Source,
        capacity: Capacity,
        capabilities: Capabilities,
        listener: Listener,
        clock: Clock,
        complete: Callable[[Step], None] | None = None,
    ) -> None:
        self.closed = False
        self.most_works = 64 + 16 * capacity.slots
        self._source = source
        self._capacity = capacity
        self._capabilities = capabilities
        self._listener = listener
        self._clock = clock
        self._complete = complete
        self._loop = asyncio.get_running_loop()
        self._runs: dict[int, _Run] = {}
        self._queue: deque[_Run] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = capacity.slots
        self._running = 0
        self._waiting = 0
        self._step = Step()
        self._flush: asyncio.Handle | None = None
        self._asked = 0

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def submit(self, work_id: int, work: Work) -> None:
        if self.closed:
            raise RuntimeError("the runner is closed")
        if work_id in self._runs:
            raise ValueError(f"work {work_id} runs already")
        run = self._runs[work_id] = _Run(work_id, work)
        self._waiting += 1
        if len(self._runs) > self.most_works:
            self._fail(run, Overloaded(f"the engine holds {self.most_works} works", retry_after_s=1.0))
        elif run.done >= run.limit:
            self._end(run, Outcome(FinishReason.LENGTH, output_tokens=run.done))
        else:
            self._queue.append(run)
            self._await_deadline(run)
            self._start()

    def refuse(self, work_id: int, work: Work, error: HeadraceError) -> None:
        """Ends a work, with the loop's next turn, instead of running it."""
        if self.closed:
            raise RuntimeError("the runner is closed")
        if work_id in self._runs:
            raise ValueError(f"work {work_id} runs already")
        run = self._runs[work_id] = _Run(work_id, work)
        self._waiting += 1
        self._fail(run, error)

    def cancel(self, work_id: int) -> None:
        if (run := self._runs.get(work_id)) is not None:
            self._fail(run, Cancelled("cancelled"))

    def tell(self) -> None:
        """Makes a step with the loop's next turn, also when no stream brings anything."""
        if self._flush is None and not self.closed:
            self._flush = self._loop.call_soon(self._tell)

    def fail_all(self, reason: str) -> None:
        """The engine died: what has come is told, then `on_broken`. No work gets an outcome any more."""
        if self.closed:
            return
        if self._flush is not None:
            self._tell()
        self._stop()
        self._listener.on_broken(reason)

    async def ask(self, work: Work) -> list[int]:
        """Runs a work beside all others, without a slot, and returns its tokens. For self-checks.

        Raises what the stream raises; the time it may take is the caller's matter.
        """
        self._asked -= 1
        tokens: list[int] = []
        async with _closing(self._source.open(self._asked, work)) as stream:
            async for piece in stream:
                tokens += piece.tokens
                if piece.finish is not None or len(tokens) >= work.sampling.max_tokens:
                    break
        return tokens[: work.sampling.max_tokens]

    async def close(self) -> None:
        self._stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop(self) -> None:
        self.closed = True
        if self._flush is not None:
            self._flush.cancel()
        for run in self._runs.values():
            run.live = False
            if run.timer is not None:
                run.timer.cancel()
            if run.task is not None:
                self._end_stream(run.task)
        self._runs.clear()
        self._queue.clear()

    def _start(self) -> None:
        while self._free and self._queue:
            run = self._queue.popleft()
            if not run.live:
                continue
            self._free -= 1
            self._waiting -= 1
            self._running += 1
            run.task = self._loop.create_task(self._read(run), name=f"stream {run.work_id}")
            self._tasks.add(run.task)
            run.task.add_done_callback(self._stream_ended)  # not in the task: one that never began has no finally

    def _stream_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free += 1
        if not self.closed:
            self._start()

    def _end_stream(self, task: asyncio.Task[None]) -> None:
        if task is not asyncio.current_task(self._loop):
            task.cancel()
        watchdog = self._loop.call_later(CLOSE_S, task.cancel)
        task.add_done_callback(lambda _: watchdog.cancel())

    async def _read(self, run: _Run) -> None:
        """A stream's task; its end frees the slot."""
        try:
            async with _closing(self._source.open(run.work_id, run.work)) as stream:
                async for piece in stream:
                    self._take(run, piece)
                    if not run.live:
                        break
            if run.live:
                self._fail(run, StageUnavailable("the engine's stream ended before the answer", retry_after_s=1.0))
        except HeadraceError as error:
            self._fail(run, error)
        except asyncio.CancelledError:
            # This runner cancels only works that have ended; for another the stream itself gave up.
            self._fail(run, StageUnavailable("the engine cancelled the stream", retry_after_s=1.0))
            raise
        except Exception as error:
            log.error("a stream of the engine failed", exc_info=error)
            self._fail(run, InternalError("internal error"))

    def _take(self, run: _Run, piece: Piece) -> None:
        """Puts a piece into the step of this turn. Runs once per token."""
        if not run.live:
            return  # it ended while its stream had this on its way
        tokens, log_probs, cached_tokens, finish = piece
        if cached_tokens is not None:
            run.cached_tokens = cached_tokens
        if not run.started:
            run.started = True
            self._step.started.append((run.work_id, run.cached_tokens))
        if tokens:
            done = run.done
            end = done + len(tokens)
            if end >= run.limit:
                if end > run.limit or finish is None:
                    finish = FinishReason.LENGTH
                end = run.limit
                tokens, log_probs = tokens[: end - done], log_probs[: end - done]
            frame = self._step.frame
            if frame.work_ids and frame.work_ids[-1] == run.work_id and not log_probs and not frame.log_probs:
                frame.counts[-1] += len(tokens)
                frame.token_ids.extend(tokens)
            else:
                frame.add(run.work_id, done, tokens, log_probs if run.log_probs else ())
            run.done = end
        if finish is not None:
            self._end(run, Outcome(finish, None, run.done, run.cached_tokens))
        elif self._flush is None:
            self._flush = self._loop.call_soon(self._tell)

    def _fail(self, run: _Run, error: HeadraceError) -> None:
        self._end(run, Outcome(None, error, run.done, run.cached_tokens))

    def _end(self, run: _Run, outcome: Outcome) -> None:
        """A work's one outcome; its stream, if it has one and that still runs, ends after it."""
        if not run.live:
            return
        run.live = False
        del self._runs[run.work_id]
        if run.timer is not None:
            run.timer.cancel()
        if run.task is None:
            self._waiting -= 1
        else:
            self._running -= 1
            self._end_stream(run.task)
        self._step.outcomes.append((run.work_id, outcome))
        self.tell()

    def _tell(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        step, self._step = self._step, Step()
        step.stats = RunnerStats(self._running, self._waiting)
        if self._complete is not None:
            self._complete(step)
        self._listener.on_step(step)

    def _await_deadline(self, run: _Run) -> None:
        left = run.work.deadline - self._clock.now()
        if left <= 0:
            self._fail(run, DeadlinePassed("the deadline passed in the engine", metadata={"stage": "executor"}))
        else:
            least, most = TIMER_S
            run.timer = self._loop.call_later(min(max(left, least), most), self._await_deadline, run)


@asynccontextmanager
async def _closing(stream: AsyncIterator[Piece]) -> AsyncIterator[AsyncIterator[Piece]]:
    """Closes a stream, also one that is no generator."""
    try:
        yield stream
    finally:
        if (close := getattr(stream, "aclose", None)) is not None:
            await close()
