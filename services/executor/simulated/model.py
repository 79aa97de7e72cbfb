"""A simulated model: continuous batching with real block accounting, in no time of its own.

Pure and synchronous. A step admits waiting works in order, decodes one token of every sequence that is past
its prompt, and spends what is left of `step_tokens` on prompts (chunked prefill; at least one token, so that
no prompt starves). The caller makes time pass.

Blocks are taken as a sequence needs them. Nothing is preempted as long as the mesh's ledger reserves blocks
first; should they run out nevertheless, the youngest sequence gives its blocks back, waits in front, and
computes its tokens again.

A step takes what Simulation.step_s says of the tokens that it computes and of the contexts that they look back on, and
Simulation.host_block_us for each block that came back from the host's tier.
"""

from collections import deque

from libs.catalogue import ModelSpec
from libs.errors import Cancelled, DeadlinePassed, HeadraceError, NotSupported, Overloaded, RequestInvalid
from libs.lane.work import FinishReason, Outcome, Work
from services.executor.blocks import PagedBlocks
from services.executor.engine import Capacity, Exactness, RunnerStats, Step
from services.executor.fit import faults
from services.executor.simulated import answers
from services.executor.simulated.batch import DecodeBatch, Sequence


class SimulatedModel:
    """A loaded model without its clock.

    An answer ends with LENGTH at `max_tokens`, or where the context is full (the smaller of the model's
    context and its blocks); before that with STOP, where its digest says so (answers.length), unless
    `ignore_end` is set. Holds at most `most_works` works; a further one ends with Overloaded.

    Raises ValueError for a spec that cannot hold one token.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if min(spec.context_tokens, spec.blocks, spec.block_tokens, spec.slots, spec.step_tokens) < 1:
            raise ValueError("context, blocks, block tokens, slots and step tokens must be at least 1")
        self.capacity = Capacity(
            spec.slots, spec.blocks, spec.block_tokens, Exactness.EXACT, spec.slots, spec.step_tokens
        )
        self.most_works = 64 + 16 * spec.slots
        self._spec = spec
        self._context = min(spec.context_tokens, spec.blocks * spec.block_tokens)
        self._blocks = PagedBlocks(spec.blocks, spec.block_tokens, spec.simulation.host_blocks)
        self._works: dict[int, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of entry
        self._prefilling: dict[int, Sequence] = {}  # those of the running that have prompt left
        self._batch = DecodeBatch(spec.block_tokens)
        self._ended: list[tuple[int, Outcome]] = []
        self._step = 0
        self._preempted = 0
        self._looked_back = 0  # by the prompt tokens of this step
        self._brought = 0  # blocks that came back from the host in this step

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._works and not self._ended

    def submit(self, work_id: int, work: Work) -> None:
        """Takes a work in. Raises ValueError when the id is in use."""
        if work_id in self._works:
            raise ValueError(f"work {work_id} runs already")
        error = self._fault(work)
        if error is None and len(self._works) >= self.most_works:
            error = Overloaded(f"the engine holds {self.most_works} works", retry_after_s=1.0)
        if error is not None:
            self._ended.append((work_id, Outcome(error=error, output_tokens=len(work.resumed))))
            return
        digest = answers.digest(self._spec.simulation.seed, work.sampling.seed, work.prompt, work.adapter)
        end, finish = min(work.sampling.max_tokens, self._context - len(work.prompt)), FinishReason.LENGTH
        if not work.sampling.ignore_end and (stop := answers.length(digest)) <= end:
            end, finish = stop, FinishReason.STOP
        if len(work.resumed) >= end:
            self._ended.append((work_id, Outcome(finish=finish, output_tokens=len(work.resumed))))
            return
        sequence = Sequence(work_id, work, digest, end, finish)
        if work.block_tokens == self.capacity.block_tokens:
            sequence.hashes = list(work.block_hashes[: len(work.prompt) // work.block_tokens])
        self._works[work_id] = sequence
        self._waiting.append(sequence)

    def cancel(self, work_id: int) -> None:
        """Drops a work and frees its blocks; its outcome comes with the next step. Ignores unknown ids."""
        sequence = self._works.get(work_id)
        if sequence is None:
            return
        produced = self._step + sequence.delta + 1 if sequence.index >= 0 else sequence.produced
        self._end(sequence, Outcome(error=Cancelled("cancelled"), output_tokens=produced), self._ended)

    def step(self, now: float) -> tuple[Step, float]:
        """One engine step from its beginning at Unix time `now`; returns what it brings, and how many seconds
        it takes until it has."""
        step, self._ended = Step(outcomes=self._ended), []
        self._step += 1
        self._looked_back = self._brought = 0
        due = self._batch.due(self._step)
        for sequence in due:
            self._grow(sequence)
        decoded, context = len(self._batch), self._batch.context(self._step)
        if decoded:
            self._batch.emit(self._step, step.frame)
        for sequence in due:
            if sequence.index >= 0:
                self._look_at(sequence, step)
        prefilled = 0
        if self._waiting or self._prefilling:
            prefilled = self._prefill(max(self._spec.step_tokens - decoded, 1), now, step)
        step.preempted, self._preempted = self._preempted, 0
        step.events = self._blocks.drain_events()
        step.stats = RunnerStats(len(self._running), len(self._waiting), self._blocks.used, self._blocks.cached)
        return step, self._duration(decoded, context, prefilled)

    def check_integrity(self) -> None:
        """Raises AssertionError if works and blocks do not add up. For tests."""
        self._blocks.check_integrity()
        waiting = {sequence.work_id for sequence in self._waiting}
        decoding = {work_id for work_id, sequence in self._running.items() if sequence.index >= 0}
        assert waiting | set(self._running) == set(self._works), "a work is lost"
        assert not waiting & set(self._running), "a work waits and runs"
        assert decoding ^ set(self._prefilling) == set(self._running), "a running work does nothing"
        assert len(decoding) == len(self._batch), "the batch has others"
        assert len(self._running) <= self.capacity.slots, "more works than slots"
        assert bool(self._running) or not self._blocks.used, "blocks are used by nobody"

    def _fault(self, work: Work) -> HeadraceError | None:
        if work.grammar is not None:
            return NotSupported("the simulated engine invents tokens and follows no grammar")
        found = faults(work, self._context)
        return RequestInvalid.of(found) if found else None

    def _grow(self, sequence: Sequence) -> None:
        """Sees to it that the token of this step has its block; the youngest give way if it must be."""
        total = len(sequence.work.prompt) + self._step + sequence.delta
        while sequence.index >= 0 and not self._blocks.grow(sequence.work_id, total):
            self._preempt(next(reversed(self._running.values())))
        sequence.blocks = max(sequence.blocks, -(-total // self.capacity.block_tokens))

    def _preempt(self, sequence: Sequence) -> None:
        self._preempted += 1
        again = Sequence(sequence.work_id, sequence.work, sequence.digest, sequence.end, sequence.finish)
        again.hashes, again.reported = sequence.hashes, sequence.reported
        again.cached_tokens = sequence.cached_tokens
        again.produced = self._step + sequence.delta if sequence.index >= 0 else sequence.produced
        self._stop(sequence)
        self._works[again.work_id] = again
        self._waiting.appendleft(again)

    def _look_at(self, sequence: Sequence, step: Step) -> None:
        if self._step + sequence.delta + 1 == sequence.end:
            self._finish(sequence, step)
        else:
            self._batch.schedule(sequence)

    def _prefill(self, budget: int, now: float, step: Step) -> int:
        """Spends up to `budget` tokens on prompts, oldest first, letting works in as it goes; returns the
        tokens spent."""
        left = budget
        for sequence in list(self._prefilling.values()):
            left -= self._compute(sequence, left, step)
            if not left:
                return budget
        while left and self._waiting and len(self._running) < self.capacity.slots:
            if not self._admit(self._waiting[0], now, step):
                break
            sequence = self._waiting.popleft()
            if sequence.work_id in self._running:
                left -= self._compute(sequence, left, step)
        return budget - left

    def _admit(self, sequence: Sequence, now: float, step: Step) -> bool:
        """Whether the first of the waiting works goes on: into the batch, or out because it is too late."""
        if sequence.work.deadline <= now and not sequence.reported:
            error = DeadlinePassed("the deadline passed in the engine's queue", metadata={"stage": "executor"})
            self._works.pop(sequence.work_id)
            step.outcomes.append((sequence.work_id, Outcome(error=error, output_tokens=sequence.produced)))
            return True
        allocation = self._blocks.allocate(sequence.work_id, sequence.hashes, sequence.to_compute)
        if allocation is None:
            return False
        self._brought += allocation.host_blocks
        sequence.blocks = allocation.blocks
        sequence.computed = allocation.cached_blocks * self.capacity.block_tokens
        self._running[sequence.work_id] = sequence
        self._prefilling[sequence.work_id] = sequence
        if not sequence.reported:
            sequence.reported, sequence.cached_tokens = True, sequence.computed
            step.started.append((sequence.work_id, sequence.cached_tokens))
        return True

    def _compute(self, sequence: Sequence, budget: int, step: Step) -> int:
        """Prefills one prompt as far as the budget goes; its end makes the first token."""
        count = min(budget, sequence.to_compute - sequence.computed)
        self._looked_back += count * sequence.computed + count * (count - 1) // 2
        sequence.computed += count
        full = sequence.computed // self.capacity.block_tokens
        self._blocks.publish(sequence.work_id, sequence.hashes[:full])
        if sequence.computed == sequence.to_compute:
            del self._prefilling[sequence.work_id]
            sequence.start_answer()
            log_probs = [next(sequence.log_probs)] if sequence.work.log_probs else []
            step.frame.add(sequence.work_id, sequence.produced, [next(sequence.tokens)], log_probs)
            if sequence.produced + 1 == sequence.end:
                self._finish(sequence, step)
            else:
                self._batch.join(sequence, sequence.produced + 1, self._step + 1)
        return count

    def _finish(self, sequence: Sequence, step: Step) -> None:
        outcome = Outcome(finish=sequence.finish, output_tokens=sequence.end, cached_tokens=sequence.cached_tokens)
        self._end(sequence, outcome, step.outcomes)

    def _end(self, sequence: Sequence, outcome: Outcome, outcomes: list[tuple[int, Outcome]]) -> None:
        if sequence.work_id in self._running:
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
        del self._works[sequence.work_id]
        outcomes.append((sequence.work_id, outcome))

    def _stop(self, sequence: Sequence) -> None:
        """Takes a sequence out of the batch; its full blocks stay in the prefix cache."""
        del self._running[sequence.work_id]
        self._prefilling.pop(sequence.work_id, None)
        if sequence.index >= 0:
            self._batch.leave(sequence)
        self._blocks.free(sequence.work_id)

    def _duration(self, decoded: int, context: int, prefilled: int) -> float:
        if not decoded and not prefilled:
            return 0.0
        times = self._spec.simulation
        step_s = times.step_s(prefilled, self._looked_back, decoded, context)
        return step_s + self._brought * times.host_block_us / 1e6
