"""What the child knows of its works: which run, which wait, which blocks they hold. Pure.

The engine is given a work only when it has a slot and, by the model, blocks for it. So "started" is the
moment of entry, a work that waits can be cancelled without the engine knowing, and with the ledger's
reservations in front the engine has no reason to preempt.

Works of one adapter run at a time; whose turn it is decides `turns`, and which prompts may enter unmarked `salts`.
When the adapter changes, running works are paused: taken out of the engine, to continue behind their tokens in
their adapter's next turn, their keys and values still in the cache under their salt.

The blocks are a model of what the engine does (Exactness.MODELLED), for it tells neither events nor hits:
paging and least-recently-used prefix caching of services.executor.blocks, with the measured block size.
Where the two can differ: the engine takes a prompt's blocks chunk by chunk, the model all at entry; the
engine also finds blocks that are not full.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from libs.lane.draft import Draft
from libs.tokens.blocks import chain, link, salt
from services.executor.blocks import PagedBlocks
from services.executor.child.wire import Ended, Stepped
from services.executor.openvino.run import Run
from services.executor.openvino.salts import Claims
from services.executor.openvino.turns import QUANTUM_S, Turns
from services.executor.openvino.wire import Submit

HEALTHY_AFTER = 64
"""Steps without a fault after which the engine counts as healthy."""

FLUSH_S = 3.0
"""How long a prompt that may only enter an empty cache waits for others to end before they are paused for it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A change that needs the engine without works."""

    adapter: str
    """Acts from now on."""
    flush: bool
    """Whether the cache has to be emptied."""


class Batch:
    """The works of one model, and what the next message will say about them.

    Works wait in a queue that the runner in the parent bounds.
    """

    def __init__(self, model: str, slots: int, blocks: int, block_tokens: int, quantum_s: float = QUANTUM_S) -> None:
        self.turns = Turns(quantum_s)
        self.claims = Claims(block_tokens)
        self.blocks = PagedBlocks(blocks, block_tokens)
        self.running: dict[int, Run] = {}
        self.waiting: deque[Run] = deque()
        self.faults = 0
        """Since the engine was last healthy."""
        self._model = model
        self._slots = slots
        self._closing = False  # a turn ends: nobody enters any more
        self._careful = 0
        self._frame = Draft()
        self._out = Stepped()
        self._told = self._out.stats

    def submit(self, work: Submit, now: float) -> None:
        """Queues a work. `now`, here and below, is in seconds of a clock that only goes forward."""
        hashes = work.hashes
        if hashes is None:
            hashes = chain(work.prompt, self.blocks.block_tokens, salt(self._model, work.salt))
        self.waiting.append(Run(work, list(hashes), now))

    def find(self, work_id: int) -> Run | None:
        """The work, if it is here."""
        if (run := self.running.get(work_id)) is not None:
            return run
        return next((run for run in self.waiting if run.work.work_id == work_id), None)

    def overdue(self, now: float) -> list[Run]:
        """Works whose deadline, in Unix seconds, is past."""
        return [run for run in (*self.running.values(), *self.waiting) if run.work.deadline <= now]

    def may_pause(self) -> bool:
        """Whether the running works can be paused now. If not, none enters any more until they can."""
        self._closing = any(run.holds for run in self.running.values())
        return not self._closing

    def turn(self, now: float) -> Turn | None:
        """The change that is due and possible now; pause, make it, and tell it by `begin`."""
        waiting: dict[str, float] = {}
        for run in self.waiting:
            waiting[run.work.adapter] = min(run.queued, waiting.get(run.work.adapter, run.queued))
        adapter = self.turns.next(now, waiting, bool(self.running))
        flush = adapter is None and self._flush_due(now)
        if adapter is None and not flush:
            self._closing = False
            return None
        return Turn(self.turns.active if adapter is None else adapter, flush) if self.may_pause() else None

    def pause(self, now: float) -> list[Run]:
        """Puts the running works back in front of the queue; they have to be taken out of the engine."""
        paused = list(self.running.values())
        for run in paused:
            self.blocks.free(run.work.work_id)
            run.queued = now
        self.running.clear()
        self.waiting.extendleft(reversed(paused))
        self._closing = False
        return paused

    def begin(self, turn: Turn, now: float, swap_s: float) -> None:
        """A turn begins; the change took `swap_s` seconds."""
        if turn.flush:
            self.forget()
            # Who was kept out goes first, else those in front would claim the same beginning again.
            self.waiting = deque(sorted(self.waiting, key=lambda run: (run.kept_out is None, run.kept_out or 0.0)))
        if turn.adapter != self.turns.active:
            self.turns.begin(turn.adapter, now, {run.work.adapter: 0.0 for run in self.waiting})
            self._out.swaps.append(swap_s)

    def forget(self) -> None:
        """The engine's cache is empty, and no work is in it."""
        self.blocks.clear()
        self.claims.clear()

    def admit(self, now: float) -> list[Run]:
        """Lets waiting works of the active adapter in, in order, as far as slots and blocks go.

        After a fault only one work at a time may be new to the engine, so that the next fault has a culprit.
        """
        entered: list[Run] = []
        careful = self._careful > 0 and any(run.fresh for run in self.running.values())
        if self._closing or not self.waiting or len(self.running) >= self._slots or careful:
            return entered
        for run in [run for run in self.waiting if run.work.adapter == self.turns.active]:
            if run.unmarked and not self.claims.take(run.work.prompt, run.work.salt):
                run.kept_out = now if run.kept_out is None else run.kept_out
                continue
            tokens = run.tokens
            self._extend(run, tokens)
            allocation = self.blocks.allocate(run.work.work_id, run.hashes, len(tokens))
            if allocation is None:
                break
            self.waiting.remove(run)
            self.running[run.work.work_id] = run
            run.entry_tokens, run.since_entry, run.matched, run.fresh = len(tokens), 0, 0, True
            run.entered_behind, run.kept_out = len(run.answer), None
            if run.cached_tokens is None:
                run.cached_tokens = allocation.cached_blocks * self.blocks.block_tokens
                self._out.started.append((run.work.work_id, run.cached_tokens))
            entered.append(run)
            if self._careful or len(self.running) >= self._slots:
                break
        return entered

    def _flush_due(self, now: float) -> bool:
        return any(
            run.kept_out is not None and (not self.running or now - run.kept_out >= FLUSH_S)
            for run in self.waiting
            if run.work.adapter == self.turns.active
        )

    def advance(self, run: Run, tokens: Sequence[int], log_probs: Sequence[float]) -> bool:
        """Takes in what the engine has made for a work; False when it departs from the answer so far."""
        run.fresh = False
        run.since_entry += len(tokens)
        if run.behind:
            expected = run.answer[run.matched : run.matched + len(tokens)]
            if expected != list(tokens[: len(expected)]):
                return False
            run.matched += len(expected)
            tokens, log_probs = tokens[len(expected) :], log_probs[len(expected) :]
        if tokens:
            offset = len(run.answer)
            run.answer += tokens
            run.matched = len(run.answer)
            self._frame.add(run.work.work_id, offset, tokens, log_probs if run.work.log_probs else ())
        self._page(run)
        return True

    def end(self, run: Run, how: str, message: str = "") -> None:
        """Ends a work and takes its blocks back. `how`: see wire.Ended."""
        work_id = run.work.work_id
        if self.running.pop(work_id, None) is not None:
            self.blocks.free(work_id)
        else:
            self.waiting.remove(run)
        self._out.ended.append(Ended(work_id, how, message, len(run.answer), run.cached_tokens or 0))

    def recover(self) -> None:
        """The engine was built anew after a fault: every running work goes back to the front of the queue, to
        continue behind its tokens. A work that was alone in being new at two faults is their cause."""
        self.faults += 1
        self._careful = HEALTHY_AFTER
        runs = list(self.running.values())
        fresh = [run for run in runs if run.fresh]
        for run in fresh:
            run.suspicion += 1
        if len(fresh) == 1 and fresh[0].suspicion > 1:
            self.end(fresh[0], "INTERNAL", "the engine fails on this request")
            runs.remove(fresh[0])
        for run in runs:
            self.blocks.free(run.work.work_id)
        self.running.clear()
        self.forget()
        self._closing = False
        self.waiting = deque([*sorted(runs, key=lambda run: run.fresh), *self.waiting])

    def report(self) -> Stepped | None:
        """What is new since the last report; None when nothing is."""
        if self._careful:
            self._careful -= 1
            if not self._careful:
                self.faults = 0
        out, frame = self._out, self._frame
        out.events = [(event.kind, list(event.hashes)) for event in self.blocks.drain_events()]
        out.stats = (len(self.running), len(self.waiting), self.blocks.used, self.blocks.cached)
        if not (frame or out.started or out.ended or out.events or out.swaps) and out.stats == self._told:
            return None
        out.work_ids, out.offsets, out.counts = frame.work_ids, frame.offsets, frame.counts
        out.token_ids, out.log_probs = frame.token_ids, frame.log_probs
        self._told, self._out, self._frame = out.stats, Stepped(), Draft()
        return out

    def _page(self, run: Run) -> None:
        """Gives a work the blocks that it has filled, and makes full ones findable. Keys and values of the
        newest token are not computed yet."""
        computed = run.entry_tokens + run.since_entry - 1
        work_id, block_tokens = run.work.work_id, self.blocks.block_tokens
        if not self.blocks.grow(work_id, computed):
            return  # beyond the ledger's promise: the engine now preempts, and the model says "full"
        full = computed // block_tokens
        if len(run.hashes) < full:
            self._extend(run, (run.work.prompt + run.answer)[:computed])
        self.blocks.publish(work_id, run.hashes[:full])

    def _extend(self, run: Run, tokens: list[int]) -> None:
        """Hashes further full blocks behind the known ones. Without a first one there is nothing to chain to:
        its salt is admission's secret."""
        step = self.blocks.block_tokens
        while run.hashes and len(tokens) >= (len(run.hashes) + 1) * step:
            start = len(run.hashes) * step
            run.hashes.append(link(run.hashes[-1], tokens[start : start + step]))
