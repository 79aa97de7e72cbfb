"""The batch of a fast engine: what one step does to works and blocks, as in services.executor.simulated.model.

Tokens are counted, not made. A sequence is looked at when it outgrows its blocks and at its end; other steps cost
the same for any number of sequences. Pure.
"""

from collections import deque

from libs.errors import Cancelled, DeadlinePassed, RequestInvalid, Violation
from libs.kvcache.values import CacheTier
from libs.lane.work import FinishReason, Outcome, Work
from services.executor.blocks import PagedBlocks
from services.simulator.record import Record
from services.simulator.sequence import Calendar, Longest, Sequence
from services.simulator.step import Load, Told

_ZEROS = [0] * 4096


class Batch:
    """Works waiting and running, and their blocks.

    Args:
        name: The executor's, for outcomes.
    """

    def __init__(self, name: str, slots: int, blocks: PagedBlocks, step_tokens: int) -> None:
        self.blocks = blocks
        self.preemptions = 0
        """Works that were thrown out because blocks ran out."""
        self.evictions = 0
        """Blocks that left the device's prefix cache for others."""
        self._name = name
        self._slots = slots
        self._step_tokens = step_tokens
        self._works: dict[int, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of entry
        self._prefilling: dict[int, Sequence] = {}
        self._calendar = Calendar()
        self._decoding = 0
        self._context = 0  # of those that decode, in the next step: tokens in front of theirs, added up
        self._longest = Longest()
        self._told = Told()
        self._next = Told()  # what is told with the next step
        self._entered: list[Sequence] = []  # made the first token here in this step
        self._left: list[tuple[Record, int, int]] = []  # out of the batch: their tokens, and when they joined it
        self._blocked = False  # the first of the waiting did not get its blocks, and nothing has come free since
        self._brought = 0  # blocks that came back from the host's tier in this step
        self._step = 0
        self._now = 0.0

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._works and not self._next.outcomes

    @property
    def waiting(self) -> int:
        """Works in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Works with a slot."""
        return len(self._running)

    @property
    def expiry(self) -> float:
        """When the first of the waiting is too late, if it waits for blocks alone; infinity else."""
        if not self._waiting or len(self._running) >= self._slots or self._waiting[0].entered:
            return float("inf")
        return self._waiting[0].deadline

    def submit(self, work_id: int, work: Work, record: Record) -> None:
        """Takes a work in. Raises ValueError when the id is in use."""
        if work_id in self._works:
            raise ValueError(f"work {work_id} runs already")
        record.starts += 1
        block_tokens = self.blocks.block_tokens
        prompt, resumed = len(work.prompt), len(work.resumed)
        room = self.blocks.capacity_blocks * block_tokens - prompt
        end = min(record.arrival.output_tokens, work.sampling.max_tokens, room)
        if room < 1:
            fault = Violation("prompt", f"has {prompt} tokens; {prompt + room - 1} fit")
            error = RequestInvalid.of([fault])
            self._next.outcomes.append((work_id, Outcome(error=error, output_tokens=resumed)))
        elif resumed >= end:
            outcome = Outcome(finish=FinishReason.STOP, output_tokens=resumed, executor=self._name)
            self._next.outcomes.append((work_id, outcome))
        else:
            hashes = work.block_hashes[: prompt // block_tokens] if work.block_tokens == block_tokens else ()
            sequence = Sequence(work_id, record, prompt, resumed, end, hashes, work.deadline)
            self._works[work_id] = sequence
            self._waiting.append(sequence)

    def holds(self, work_id: int) -> bool:
        """Whether a work is here."""
        return work_id in self._works

    def drop(self, work_id: int) -> None:
        """Drops a work behind the step that began last; its outcome comes with the next one. Ignores unknown ids."""
        sequence = self._works.pop(work_id, None)
        if sequence is None:
            return
        produced = self._step + sequence.delta + 1 if sequence.joined else sequence.produced
        if sequence.joined:
            self._left.append((sequence.record, produced, sequence.joined))
        if work_id in self._running:
            self._stop(sequence, self._step + 1)
        else:
            self._waiting.remove(sequence)
            self._blocked = False
        error = Cancelled("cancelled")
        self._say(self._next, sequence, produced, Outcome(error=error, output_tokens=produced, executor=self._name))

    def begin(self, now: float) -> Load:
        """Begins a step at virtual time `now`."""
        self._step += 1
        self._now = now
        told = self._told = self._next
        self._next = Told()
        due = self._calendar.due(self._step)
        for sequence in due:
            self._grow(sequence)
        decoded, context = self._decoding, self._context
        for sequence in due:
            if sequence.joined:
                if self._step + sequence.delta + 1 == sequence.end:
                    self._finish(sequence)
                else:
                    self._schedule(sequence)
        self._context += self._decoding
        prefilled, prefill_context, self._brought = 0, 0, 0
        if self._waiting or self._prefilling:
            prefilled, prefill_context = self._prefill(max(self._step_tokens - decoded, 1))
        told.events = self.blocks.drain_events()
        for event in told.events:
            if event.kind == "removed" and event.tier is CacheTier.DEVICE:
                self.evictions += len(event.hashes)
        alike = 1
        if decoded and not prefilled and decoded == self._decoding and not told:
            alike = self._calendar.next() - self._step
        return Load(prefilled, prefill_context, decoded, context, self._brought, alike)

    def repeat(self, steps: int, last_s: float) -> None:
        """The step that began, and as many of those alike that `steps` have ended in all, are over.

        Args:
            last_s: How long the last of them took, the longest.
        """
        self._step += steps - 1
        self._context += self._decoding * (steps - 1)
        self._longest.add(self._step, last_s)

    def end(self, now: float) -> Told:
        """What the steps that ended have brought; also told to the records."""
        for sequence in self._entered:
            sequence.record.entered(now, sequence.produced + 1)
        self._entered.clear()
        for record, outputs, joined in self._left:
            record.left(now, outputs, self._longest.since(joined + 1))
        self._left.clear()
        return self._told

    def check_integrity(self) -> None:
        """Raises AssertionError if works, contexts and blocks do not add up. For tests, between two steps."""
        self.blocks.check_integrity()
        decoding = [sequence for sequence in self._running.values() if sequence.joined]
        assert len(decoding) == self._decoding, "the batch has others"
        assert {s.work_id for s in self._waiting} | set(self._running) == set(self._works), "a work is lost"
        assert set(self._prefilling) == {s.work_id for s in self._running.values() if not s.joined}
        assert len(self._running) <= self._slots, "more works than slots"
        assert bool(self._running) or not self.blocks.used, "blocks are used by nobody"
        assert self._context == sum(s.prompt + self._step + 1 + s.delta for s in decoding), "contexts differ"

    # --- one step ----------------------------------------------------------------------------------

    def _schedule(self, sequence: Sequence) -> None:
        outgrown = sequence.blocks * self.blocks.block_tokens - sequence.prompt + 1
        sequence.due = min(outgrown, sequence.end - 1) - sequence.delta
        self._calendar.add(sequence)

    def _grow(self, sequence: Sequence) -> None:
        """Sees to it that the token of this step has its block; the youngest give way if it must be."""
        total = sequence.prompt + self._step + sequence.delta
        while sequence.joined and not self.blocks.grow(sequence.work_id, total):
            self._preempt(next(reversed(self._running.values())))
        sequence.blocks = max(sequence.blocks, -(-total // self.blocks.block_tokens))

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        if sequence.joined:
            sequence.produced = self._step + sequence.delta
            worst = self._longest.since(sequence.joined + 1)
            sequence.record.left(self._now, sequence.produced, worst)
        self._stop(sequence, self._step)
        sequence.computed = sequence.published = sequence.blocks = 0
        self._waiting.appendleft(sequence)

    def _prefill(self, budget: int) -> tuple[int, int]:
        """Spends up to `budget` tokens on prompts, oldest first, letting works in as it goes; returns the
        tokens spent, and those in front of them."""
        left, context = budget, 0
        for sequence in list(self._prefilling.values()):
            count, front = self._compute(sequence, left)
            left, context = left - count, context + front
            if not left:
                return budget, context
        while left and self._waiting and len(self._running) < self._slots:
            sequence = self._waiting[0]
            if not self._admit(sequence):
                break
            self._waiting.popleft()
            if sequence.work_id in self._running:
                count, front = self._compute(sequence, left)
                left, context = left - count, context + front
        return budget - left, context

    def _admit(self, sequence: Sequence) -> bool:
        """Whether the first of the waiting works goes on: into the batch, or out because it is too late."""
        if sequence.deadline <= self._now and not sequence.entered:
            error = DeadlinePassed("the deadline passed in the engine's queue", metadata={"stage": "executor"})
            del self._works[sequence.work_id]
            self._told.outcomes.append((sequence.work_id, Outcome(error=error, output_tokens=sequence.produced)))
            return True
        if self._blocked:
            return False
        allocation = self.blocks.allocate(sequence.work_id, sequence.hashes, sequence.to_compute)
        if allocation is None:
            self._blocked = True
            return False
        self._brought += allocation.host_blocks
        sequence.blocks = allocation.blocks
        sequence.published = allocation.cached_blocks
        sequence.computed = allocation.cached_blocks * self.blocks.block_tokens
        self._running[sequence.work_id] = self._prefilling[sequence.work_id] = sequence
        if not sequence.entered:
            sequence.entered, sequence.cached_tokens = True, sequence.computed
        return True

    def _compute(self, sequence: Sequence, budget: int) -> tuple[int, int]:
        """Prefills one prompt as far as the budget goes; its end makes a token. Returns the tokens computed,
        and those in front of them, added up."""
        before, total = sequence.computed, sequence.to_compute
        count = min(budget, total - before)
        sequence.computed = computed = before + count
        full = min(computed // self.blocks.block_tokens, len(sequence.hashes))
        if full > sequence.published:
            self.blocks.publish(sequence.work_id, sequence.hashes[:full])
            self._blocked = False
            sequence.published = full
        if computed == total:
            del self._prefilling[sequence.work_id]
            self._entered.append(sequence)
            position = sequence.produced + 1
            sequence.joined, sequence.delta = self._step, position - self._step - 1
            self._decoding += 1
            self._context += sequence.prompt + position
            if position == sequence.end:
                self._finish(sequence)
            else:
                self._told.frame.add(sequence.work_id, sequence.told, _zeros(position - sequence.told))
                sequence.told = position
                self._schedule(sequence)
        return count, count * before + count * (count - 1) // 2

    def _finish(self, sequence: Sequence) -> None:
        """The step makes its last token."""
        self._say(self._told, sequence, sequence.end, Outcome(
            finish=FinishReason.STOP, output_tokens=sequence.end, cached_tokens=sequence.cached_tokens,
            executor=self._name,
        ))  # fmt: skip
        self._left.append((sequence.record, sequence.end, sequence.joined))
        # One that joins in this step has its context of the next step in the sum already, others that of this one.
        self._stop(sequence, self._step + (sequence.joined == self._step))
        del self._works[sequence.work_id]

    def _say(self, told: Told, sequence: Sequence, outputs: int, outcome: Outcome) -> None:
        if outputs > sequence.told:
            told.frame.add(sequence.work_id, sequence.told, _zeros(outputs - sequence.told))
        told.outcomes.append((sequence.work_id, outcome))

    def _stop(self, sequence: Sequence, step: int) -> None:
        """Takes a sequence out of the batch, whose context counts as of a step; its full blocks stay in the
        prefix cache."""
        del self._running[sequence.work_id]
        self._prefilling.pop(sequence.work_id, None)
        if sequence.joined:
            self._decoding -= 1
            self._context -= sequence.prompt + step + sequence.delta
            sequence.joined = sequence.due = 0
        self.blocks.free(sequence.work_id)
        self._blocked = False


def _zeros(count: int) -> list[int]:
    return _ZEROS[:count] if count <= len(_ZEROS) else [0] * count
