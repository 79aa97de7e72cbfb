"""What the child knows of its works: which the engine has, which wait, what the next message says. Pure.

The engine is given as many works as there are slots, the better tier first. A work that waits here can be
cancelled without the engine knowing.
"""

import heapq

from libs.kvcache.values import BlockEvent
from libs.lane.draft import Draft
from libs.lane.work import Work
from services.executor.child.wire import Ended, Stepped


class Run:
    """A work in the child."""

    __slots__ = ("cached_tokens", "done", "started", "work", "work_id")

    def __init__(self, work_id: int, work: Work) -> None:
        self.work_id = work_id
        self.work = work
        self.done = len(work.resumed)
        """Tokens of the answer so far."""
        self.started = False
        self.cached_tokens = 0


class Batch:
    """The works of one model. They wait in a queue that the runner in the parent bounds."""

    def __init__(self, slots: int) -> None:
        self.running: dict[int, Run] = {}
        """Those that the engine has."""
        self._slots = slots
        self._waiting: dict[int, Run] = {}
        self._queue: list[tuple[int, int, int]] = []  # tier, arrival, work id; ended works stay until they come up
        self._arrivals = 0
        self._frame = Draft()
        self._out = Stepped()
        self._told = self._out.stats

    @property
    def idle(self) -> bool:
        """Whether there are no works."""
        return not (self.running or self._waiting)

    def submit(self, work_id: int, work: Work) -> None:
        """Queues a work."""
        self._waiting[work_id] = Run(work_id, work)
        self._arrivals += 1
        heapq.heappush(self._queue, (int(work.tier), self._arrivals, work_id))

    def find(self, work_id: int) -> Run | None:
        """The work, if it is here."""
        return self.running.get(work_id) or self._waiting.get(work_id)

    def overdue(self, now: float) -> list[Run]:
        """Works whose deadline, in Unix seconds, is past."""
        return [run for run in (*self.running.values(), *self._waiting.values()) if run.work.deadline <= now]

    def admit(self) -> list[Run]:
        """Takes works out of the queue as far as slots go."""
        entered = []
        while self._queue and len(self.running) < self._slots:
            work_id = heapq.heappop(self._queue)[2]
            if (run := self._waiting.pop(work_id, None)) is not None:
                self.running[work_id] = run
                entered.append(run)
        return entered

    def advance(self, run: Run, tokens: list[int], log_probs: list[float], cached_tokens: int) -> None:
        """Takes in what the engine has made for a work."""
        if not run.started:
            run.started, run.cached_tokens = True, min(cached_tokens, len(run.work.prompt))
            self._out.started.append((run.work_id, run.cached_tokens))
        if tokens:
            self._frame.add(run.work_id, run.done, tokens, log_probs if run.work.log_probs else ())
            run.done += len(tokens)

    def end(self, run: Run, how: str, message: str = "") -> None:
        """Ends a work. `how`: see services.executor.child.wire.Ended."""
        self.running.pop(run.work_id, None)
        self._waiting.pop(run.work_id, None)
        self._out.ended.append(Ended(run.work_id, how, message, run.done, run.cached_tokens))

    def report(self, events: list[BlockEvent], waiting: int, used: int, cached: int) -> Stepped | None:
        """What is new since the last report; None when nothing is.

        Args:
            waiting: Works that the engine has and not in its batch.
            used: Blocks that works hold.
            cached: Blocks kept for their prefix alone.
        """
        out, frame = self._out, self._frame
        out.events = [(event.kind, list(event.hashes)) for event in events]
        waiting = min(waiting, len(self.running))
        out.stats = (len(self.running) - waiting, len(self._waiting) + waiting, used, cached)
        if not (frame or out.started or out.ended or out.events) and out.stats == self._told:
            return None
        out.work_ids, out.offsets, out.counts = frame.work_ids, frame.offsets, frame.counts
        out.token_ids, out.log_probs = frame.token_ids, frame.log_probs
        self._told, self._out, self._frame = out.stats, Stepped(), Draft()
        return out
