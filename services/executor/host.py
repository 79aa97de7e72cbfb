"""The executor as a stage: takes works from lanes to the copy of their pool, and steps back to the lanes.

No policy is here: what runs when and where was decided in front. An executor only says what it cannot do.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from libs.catalogue import model_of
from libs.errors import Cancelled, HeadraceError, NoExecutor, StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import DRAINING
from libs.lane.frame import NUMBER, Frame
from libs.lane.stage import Sink
from libs.lane.work import Decision, Outcome, QueueState, Tier, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span, Tracing
from services.executor.engine import BlockEvent, Runner, RunnerStats, Step
from services.executor.fit import refusal

Observe = Callable[[str, Step], None]
"""Told of each copy's steps, by pool: metrics and block events."""


class Adapters(Protocol):
    """The adapters of a copy; services.executor.adapter_desk."""

    def take(self, adapter: str, done: Callable[[HeadraceError | None], None]) -> None:
        """Has an adapter loaded; `done` is told, at once or later. Without an error `release` has to follow."""
        ...

    def give_up(self, adapter: str, done: Callable[[HeadraceError | None], None]) -> None:
        """The work has ended before `done` was told."""
        ...

    def release(self, adapter: str) -> None:
        """The work has ended."""
        ...


class _Running:
    """A work on a copy."""

    __slots__ = ("holds", "lane", "parked", "span", "work", "work_id")

    def __init__(self, lane: "HostLane", work_id: int, work: Work, span: Span) -> None:
        self.lane = lane
        self.work_id = work_id
        self.work = work
        self.span = span
        self.parked: Callable[[HeadraceError | None], None] | None = None
        """While its adapter is being loaded, and the runner does not have it yet: who is told of the adapter."""
        self.holds = False
        """It has its adapter, and gives it back at its end."""


class Copy:
    """A loaded model and the works on it. Listens to its runner."""

    def __init__(self, host: "Host", pool: str) -> None:
        self.pool = pool
        self.runner: Runner | None = None
        self.adapters: Adapters | None = None
        self.draining = False
        self.broken = ""
        """Why its runner died; empty while it has not."""
        self.works: dict[int, _Running] = {}
        self.prefilling: set[int] = set()
        self.stats = RunnerStats()
        self._host = host

    def on_step(self, step: Step) -> None:
        """Passes a step on. Runs once per step."""
        self.stats = step.stats
        for run_id, cached_tokens in step.started:
            if (running := self.works.get(run_id)) is not None:
                running.span.set(names.GEN_AI_CACHED_TOKENS, cached_tokens)
        if self.prefilling:
            self._first_tokens(step.frame.work_ids)
        if step.frame:
            self._pass_on(step.frame)
        for run_id, outcome in step.outcomes:
            self._end(run_id, outcome)
        self._host.observe(self.pool, step)

    def on_broken(self, reason: str) -> None:
        """Hands every work back: the batcher sends it elsewhere, or here when the model is back."""
        self.runner, self.adapters, self.broken = None, None, reason
        for run_id in list(self.works):
            self._end(run_id, Outcome(error=StageUnavailable(f"the engine died: {reason}", retry_after_s=1.0)))
        self._host.observe(self.pool, Step(events=[BlockEvent("cleared")]))
        self._host.broken(self.pool, reason)

    def start(self, run_id: int, work: Work) -> None:
        """Gives a work to the runner, once its adapter is there."""
        assert self.runner is not None
        if not work.adapter:
            self.runner.submit(run_id, work)
            return
        assert self.adapters is not None
        running = self.works[run_id]
        running.parked = partial(self._adapter_there, run_id, running)
        self.adapters.take(work.adapter, running.parked)

    def stop(self, run_id: int) -> None:
        """Cancels a work."""
        running = self.works.get(run_id)
        if running is not None and running.parked is not None:
            error = Cancelled("cancelled while its adapter was being loaded")
            self._end(run_id, Outcome(error=error, output_tokens=len(running.work.resumed)))
        elif self.runner is not None:
            self.runner.cancel(run_id)

    def _adapter_there(self, run_id: int, running: _Running, error: HeadraceError | None) -> None:
        running.parked = None
        if error is not None:
            self._end(run_id, Outcome(error=error, output_tokens=len(running.work.resumed)))
        elif self.works.get(run_id) is running and self.runner is not None:
            running.holds = True
            self.runner.submit(run_id, running.work)
        elif self.adapters is not None:  # it ended because of something that it was told a moment before
            self.adapters.release(running.work.adapter)

    def forget(self, run_id: int) -> "_Running | None":
        """Takes a work out, whose lane wants nothing more of it."""
        running = self.works.pop(run_id, None)
        self.prefilling.discard(run_id)
        if running is None or self.adapters is None or not running.work.adapter:
            return running
        if running.parked is not None:
            self.adapters.give_up(running.work.adapter, running.parked)
        elif running.holds:
            self.adapters.release(running.work.adapter)
        return running

    def _pass_on(self, step: Draft) -> None:
        """Gives tokens to the lanes of their works: as they are, where all came from one lane."""
        found = [self.works.get(run_id) for run_id in step.work_ids]
        running = [each for each in found if each is not None]
        if len({each.lane for each in running}) == 1 and len(running) == len(found):
            numbers = np.array([each.work_id for each in running], NUMBER)
            running[0].lane.sink.on_frame(Frame.of(step).under(numbers))
            return
        passed: dict[HostLane, Draft] = {}
        for each, (_, offset, tokens, log_probs) in zip(found, Frame.of(step).entries(), strict=True):
            if each is not None:  # else its lane has gone
                passed.setdefault(each.lane, Draft()).add(each.work_id, offset, tokens, log_probs)
        for lane, out in passed.items():
            lane.sink.on_frame(Frame.of(out))

    def _first_tokens(self, run_ids: Sequence[int]) -> None:
        for run_id in self.prefilling.intersection(run_ids):
            self.prefilling.discard(run_id)
            if (running := self.works.get(run_id)) is not None:
                running.span.end()
                running.span = self._host.tracing.start(names.DECODE, running.work.traceparent)

    def _end(self, run_id: int, outcome: Outcome) -> None:
        running = self.forget(run_id)
        if running is None:
            return
        if outcome.error is not None:
            running.span.error(outcome.error.message, outcome.error.reason)
        running.span.set(names.GEN_AI_OUTPUT_TOKENS, outcome.output_tokens)
        running.span.end()
        running.lane.runs.pop(running.work_id, None)
        running.lane.sink.on_outcome(running.work_id, replace(outcome, executor=self._host.instance))


class Host:
    """A Stage over the runners of this process.

    Args:
        instance: The executor's name; goes into every outcome.
        observe: Told of each step.
        broken: Told of each runner that died, with the reason.
    """

    def __init__(self, instance: str, tracing: Tracing, observe: Observe, broken: Callable[[str, str], None]) -> None:
        self.instance = instance
        self.tracing = tracing
        self.observe = observe
        self.broken = broken
        self.draining = False
        self._copies: dict[str, Copy] = {}
        self._sequence = 0

    def host(self, pool: str) -> Copy:
        """Makes room for a copy; give it to the engine as the listener, then set its runner and adapters."""
        self._copies[pool] = Copy(self, pool)
        return self._copies[pool]

    def drop(self, pool: str) -> None:
        """Forgets a copy; works that still run on it are handed back."""
        copy = self._copies.pop(pool, None)
        if copy is not None:
            for run_id in list(copy.works):
                copy._end(run_id, Outcome(error=NoExecutor(f"{pool} was unloaded", retry_after_s=1.0)))

    @property
    def copies(self) -> Mapping[str, Copy]:
        """By pool."""
        return self._copies

    @property
    def in_flight(self) -> int:
        """Works on all copies."""
        return sum(len(copy.works) for copy in self._copies.values())

    def open(self, sink: Sink) -> "HostLane":
        """A lane that is ready at once."""
        return HostLane(self, sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """Whether it would run here."""
        copy = self._copies.get(work.pool)
        if copy is None or copy.runner is None:
            return [Decision("executor", "refuse", f"{self.instance} does not hold {work.pool}")]
        if (error := refusal(work, copy.runner.capabilities)) is not None:
            return [Decision("executor", "refuse", error.message)]
        capacity, stats = copy.runner.capacity, copy.stats
        slots, blocks = f"{stats.running} of {capacity.slots} slots", f"{stats.blocks_used} of {capacity.blocks} blocks"
        return [Decision("executor", f"run on {self.instance}", f"{slots} and {blocks} are used")]

    async def queues(self) -> Sequence[QueueState]:
        """Works inside the runners, by pool and tier."""
        states = []
        for pool, copy in self._copies.items():
            for tier in Tier:
                running = sum(1 for running in copy.works.values() if running.work.tier == tier)
                if running:
                    states.append(QueueState(self.instance, pool, tier, 0, 0, running, 0))
        return states

    def submit(self, lane: "HostLane", work_id: int, work: Work) -> None:
        """Gives a work to its pool's copy, or refuses it."""
        copy = self._copies.get(work.pool)
        if (error := self._refusal(copy, work)) is not None:
            lane.sink.on_outcome(work_id, Outcome(error=error, output_tokens=len(work.resumed), executor=self.instance))
            return
        assert copy is not None
        self._sequence += 1
        run_id = self._sequence
        span = self.tracing.start(
            names.PREFILL,
            work.traceparent,
            attributes={
                names.EXECUTOR: self.instance,
                names.GEN_AI_INPUT_TOKENS: len(work.prompt),
                names.RESUMED_TOKENS: len(work.resumed),
                names.BATCH_WORKS: copy.stats.running,
            },
        )
        if work.adapter:
            span.set(names.ADAPTER, model_of(work.adapter))
        copy.works[run_id] = _Running(lane, work_id, work, span)
        copy.prefilling.add(run_id)
        lane.runs[work_id] = (copy, run_id)
        copy.start(run_id, work)

    def _refusal(self, copy: Copy | None, work: Work) -> HeadraceError | None:
        if self.draining or (copy is not None and copy.draining):
            return StageUnavailable(f"{self.instance} is draining", metadata={DRAINING: "true"}, retry_after_s=1.0)
        if copy is None or copy.runner is None:
            return NoExecutor(f"{self.instance} does not hold {work.pool}", retry_after_s=1.0)
        return refusal(work, copy.runner.capabilities)


class HostLane:
    """A batcher's lane; see libs.lane.stage.Lane."""

    ready = True

    def __init__(self, host: Host, sink: Sink) -> None:
        self.sink = sink
        self.runs: dict[int, tuple[Copy, int]] = {}
        self._host = host

    def submit(self, work_id: int, work: Work) -> None:
        self._host.submit(self, work_id, work)

    def cancel(self, work_id: int) -> None:
        if (run := self.runs.get(work_id)) is not None:
            run[0].stop(run[1])

    def close(self) -> None:
        runs, self.runs = list(self.runs.values()), {}
        for copy, run_id in runs:
            if copy.runner is not None:
                copy.runner.cancel(run_id)
            if (running := copy.forget(run_id)) is not None:
                running.span.event(names.CANCELLED)
                running.span.end()
