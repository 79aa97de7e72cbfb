"""The executor as a stage: takes works from lanes to the runner of their model, and steps back to the lanes.

No policy is here: what runs when and where was decided in front. An executor only says what it cannot do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from libs.errors import CapacityError, NoExecutor, StageUnavailable
from libs.lane.forwarder import DRAINING
from libs.lane.stage import Sink
from libs.lane.work import Decision, Frame, Outcome, QueueState, Tier, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span, Tracing
from services.executor.engine import BlockEvent, Runner, RunnerStats, Step

Observe = Callable[[str, Step], None]
"""Told of each model's steps: metrics and block events."""


class _Running:
    """A work on a runner."""

    __slots__ = ("lane", "span", "work", "work_id")

    def __init__(self, lane: "HostLane", work_id: int, work: Work, span: Span) -> None:
        self.lane = lane
        self.work_id = work_id
        self.work = work
        self.span = span


class HostedModel:
    """A loaded model and the works on it. Listens to its runner."""

    def __init__(self, host: "Host", model: str) -> None:
        self.model = model
        self.runner: Runner | None = None
        self.draining = False
        self.broken = ""
        """Why its runner died; empty while it has not."""
        self.works: dict[int, _Running] = {}
        self.prefilling: set[int] = set()
        self.stats = RunnerStats()
        self._host = host

    def on_step(self, step: Step) -> None:
        """Sorts a step by lane. Runs once per step; its loop once per work in it."""
        self.stats = step.stats
        for run_id, cached_tokens in step.started:
            if (running := self.works.get(run_id)) is not None:
                running.span.set(names.GEN_AI_CACHED_TOKENS, cached_tokens)
        frame, works = step.frame, self.works
        if self.prefilling:
            self._first_tokens(frame)
        passed: dict[HostLane, Frame] = {}
        end = 0
        for run_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
            start, end = end, end + count
            running = works.get(run_id)
            if running is None:
                continue  # its lane has gone
            if (out := passed.get(running.lane)) is None:
                out = passed[running.lane] = Frame()
            out.add(running.work_id, offset, frame.token_ids[start:end], frame.log_probs[start:end])
        for lane, out in passed.items():
            lane.sink.on_frame(out)
        for run_id, outcome in step.outcomes:
            self._end(run_id, outcome)
        self._host.observe(self.model, step)

    def on_broken(self, reason: str) -> None:
        """Hands every work back: the batcher sends it elsewhere, or here when the model is back."""
        self.runner, self.broken = None, reason
        for run_id in list(self.works):
            self._end(run_id, Outcome(error=StageUnavailable(f"the engine died: {reason}", retry_after_s=1.0)))
        self._host.observe(self.model, Step(events=[BlockEvent("cleared")]))
        self._host.broken(self.model, reason)

    def _first_tokens(self, frame: Frame) -> None:
        for run_id in self.prefilling.intersection(frame.work_ids):
            self.prefilling.discard(run_id)
            if (running := self.works.get(run_id)) is not None:
                running.span.end()
                running.span = self._host.tracing.start(names.DECODE, running.work.traceparent)

    def _end(self, run_id: int, outcome: Outcome) -> None:
        running = self.works.pop(run_id, None)
        self.prefilling.discard(run_id)
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
        self._models: dict[str, HostedModel] = {}
        self._sequence = 0

    def host(self, model: str) -> HostedModel:
        """Makes room for a model; give it to the engine as the listener, then set its runner."""
        self._models[model] = HostedModel(self, model)
        return self._models[model]

    def drop(self, model: str) -> None:
        """Forgets a model; works that still run on it are handed back."""
        hosted = self._models.pop(model, None)
        if hosted is not None:
            for run_id in list(hosted.works):
                hosted._end(run_id, Outcome(error=NoExecutor(f"{model} was unloaded", retry_after_s=1.0)))

    @property
    def models(self) -> Mapping[str, HostedModel]:
        """By name."""
        return self._models

    @property
    def in_flight(self) -> int:
        """Works on all runners."""
        return sum(len(hosted.works) for hosted in self._models.values())

    def open(self, sink: Sink) -> "HostLane":
        """A lane that is ready at once."""
        return HostLane(self, sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """Whether it would run here."""
        hosted = self._models.get(work.model)
        if hosted is None or hosted.runner is None:
            return [Decision("executor", "refuse", f"{self.instance} does not hold {work.model}")]
        capacity, stats = hosted.runner.capacity, hosted.stats
        slots, blocks = f"{stats.running} of {capacity.slots} slots", f"{stats.blocks_used} of {capacity.blocks} blocks"
        return [Decision("executor", f"run on {self.instance}", f"{slots} and {blocks} are used")]

    async def queues(self) -> Sequence[QueueState]:
        """Works inside the runners, by model and tier."""
        states = []
        for model, hosted in self._models.items():
            for tier in Tier:
                running = sum(1 for running in hosted.works.values() if running.work.tier == tier)
                if running:
                    states.append(QueueState(self.instance, model, tier, 0, 0, running, 0))
        return states

    def submit(self, lane: "HostLane", work_id: int, work: Work) -> None:
        """Gives a work to its model's runner, or refuses it."""
        hosted = self._models.get(work.model)
        if (error := self._refusal(hosted, work.model)) is not None:
            lane.sink.on_outcome(work_id, Outcome(error=error, output_tokens=len(work.resumed), executor=self.instance))
            return
        assert hosted is not None
        assert hosted.runner is not None
        self._sequence += 1
        run_id = self._sequence
        span = self.tracing.start(
            names.PREFILL,
            work.traceparent,
            attributes={
                names.EXECUTOR: self.instance,
                names.GEN_AI_INPUT_TOKENS: len(work.prompt),
                names.RESUMED_TOKENS: len(work.resumed),
                names.BATCH_WORKS: hosted.stats.running,
            },
        )
        hosted.works[run_id] = _Running(lane, work_id, work, span)
        hosted.prefilling.add(run_id)
        lane.runs[work_id] = (hosted, run_id)
        hosted.runner.submit(run_id, work)

    def _refusal(self, hosted: HostedModel | None, model: str) -> CapacityError | None:
        if self.draining or (hosted is not None and hosted.draining):
            return StageUnavailable(f"{self.instance} is draining", metadata={DRAINING: "true"}, retry_after_s=1.0)
        if hosted is None or hosted.runner is None:
            return NoExecutor(f"{self.instance} does not hold {model}", retry_after_s=1.0)
        return None


class HostLane:
    """A batcher's lane; see libs.lane.stage.Lane."""

    ready = True

    def __init__(self, host: Host, sink: Sink) -> None:
        self.sink = sink
        self.runs: dict[int, tuple[HostedModel, int]] = {}
        self._host = host

    def submit(self, work_id: int, work: Work) -> None:
        self._host.submit(self, work_id, work)

    def cancel(self, work_id: int) -> None:
        if (run := self.runs.get(work_id)) is not None and run[0].runner is not None:
            run[0].runner.cancel(run[1])

    def close(self) -> None:
        runs, self.runs = list(self.runs.values()), {}
        for hosted, run_id in runs:
            running = hosted.works.pop(run_id, None)
            hosted.prefilling.discard(run_id)
            if running is not None:
                running.span.event(names.CANCELLED)
                running.span.end()
            if hosted.runner is not None:
                hosted.runner.cancel(run_id)
