"""A mesh in virtual time: one batcher, one KV-cache manager, many executors, and a trace that arrives.

The batcher and the manager are the real ones, down to every decision. Executors are fast engines behind a wire.
Admission and router are left out: they add a constant, and decide nothing about order or place.

Virtual time is as good as real time here because that code learns what time it is from its clock alone, and what
happens from lanes, answers and ticks. What real time adds is the time that this code itself takes, some 0.1 ms for a
work, where a step takes 10 ms; and that of the network, which is `Setup.wire_s`. tests/sim runs the same requests
both ways and compares.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator

from libs.lane.frame import Frame
from libs.lane.work import Note, Outcome, Sampling, Work
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import untraced
from services.batcher.executors import ExecutorInfo
from services.batcher.observe import Observer
from services.batcher.rules import FixedRules
from services.batcher.seat import ModelCapacity
from services.batcher.stage import Batcher
from services.simulator.executor import Executor
from services.simulator.loop import Loop
from services.simulator.memory import NearMemory, Report
from services.simulator.record import Record
from services.simulator.values import OK, Arrival, Result, Sample, Setup

POOL = "model@0"

Progress = Callable[[float, int], None]
"""Called with each sample: virtual seconds so far, and requests that have ended."""


def simulate(setup: Setup, arrivals: Iterable[Arrival], progress: Progress | None = None) -> Result:
    """Plays a trace to its end: until every request has its outcome.

    Args:
        arrivals: In order of time; taken one by one.

    Raises ValueError for an arrival before the one in front of it, or with blocks of another size than the setup's.
    """
    return World(setup, progress).run(arrivals)


class World:
    """The parts, and the sink of the router's lane."""

    def __init__(self, setup: Setup, progress: Progress | None = None) -> None:
        self.loop = Loop()
        self.memory = NearMemory(self.loop, setup.scheduling, lambda event: self.loop.after(setup.ask_s, event))
        self.records: dict[str, Record] = {}
        """By request id, in order of arrival."""
        self.executors = [self._executor(setup, f"executor-{number:03}") for number in range(setup.executors)]
        self.batcher = Batcher(
            "batcher",
            self.memory,
            FixedRules(setup.scheduling, dict(setup.tiers)),
            untraced(),
            Observer(Metrics("simulator", "batcher", "0")),
            self.loop,
            random.Random(setup.seed).randrange,  # noqa: S311  a simulation is to repeat itself
        )
        capacity = ModelCapacity(
            setup.slots, setup.blocks, setup.block_tokens, setup.slots, step_tokens=setup.step_tokens
        )
        infos = {executor.name: ExecutorInfo(executor, {POOL: capacity}) for executor in self.executors}
        self.batcher.set_executors(infos)
        self.lane = self.batcher.open(self)
        self._setup = setup
        self._progress = progress
        self._samples: list[Sample] = []
        self._open = 0
        self._ended = 0
        self._coming: Iterator[Arrival] = iter(())

    def run(self, arrivals: Iterable[Arrival]) -> Result:
        """See `simulate`."""
        started = time.perf_counter()
        loop, setup = self.loop, self._setup
        self._coming = iter(arrivals)
        self._await_next()
        loop.every(setup.tick_s, self.batcher.tick)
        loop.every(setup.sample_s, self._sample)
        while self._open:
            loop.step()
        self.batcher.close()
        engines = [executor.engine for executor in self.executors]
        return Result(
            served=[record.served for record in self.records.values() if record.served is not None],
            evictions=sum(engine.batch.evictions for engine in engines),
            engine_preemptions=sum(engine.batch.preemptions for engine in engines),
            steps=sum(engine.steps for engine in engines),
            end_s=loop.time,
            wall_s=time.perf_counter() - started,
            samples=self._samples,
        )

    # --- the sink of the router's lane -------------------------------------------------------------

    def on_ready(self) -> None:
        """The batcher is there from the beginning."""

    def on_frame(self, frame: Frame) -> None:
        """Tokens are counted where they are made."""

    def on_note(self, work_id: int, note: Note) -> None:
        """Nobody reads it."""

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        self._open -= 1
        self._ended += 1
        reason = OK if outcome.error is None else outcome.error.reason
        self.records[str(work_id)].end(
            self.loop.time, reason, outcome.queued_s, outcome.cached_tokens, outcome.executor
        )

    def on_broken(self, reason: str) -> None:
        """A lane in one process does not break."""

    # --- arrivals and samples ----------------------------------------------------------------------

    def _await_next(self) -> None:
        arrival = next(self._coming, None)
        if arrival is None:
            return
        if arrival.block_hashes and arrival.block_tokens != self._setup.block_tokens:
            ours = self._setup.block_tokens
            raise ValueError(
                f"the trace has blocks of {arrival.block_tokens} tokens, the setup of {ours}; make them equal"
            )
        self._open += 1
        self.loop.at(arrival.at, lambda: self._arrive(arrival))

    def _arrive(self, arrival: Arrival) -> None:
        number = len(self.records)
        self.records[str(number)] = Record(number, arrival)
        self._await_next()
        self.lane.submit(number, _work(number, arrival, self._setup))

    def _executor(self, setup: Setup, name: str) -> Executor:
        report = Report(self.memory, name, POOL, setup.blocks, setup.block_tokens)
        return Executor(self.loop, setup, name, report, self.records)

    def _sample(self) -> None:
        batches = [executor.engine.batch for executor in self.executors]
        running = sum(batch.running for batch in batches)
        queued = sum(batch.waiting for batch in batches)
        blocks = self._setup.blocks * len(batches)
        sample = Sample(
            at=self.loop.time,
            waiting=max(self.batcher.in_flight - running - queued, 0),
            engine_waiting=queued,
            running=running,
            used_blocks=sum(batch.blocks.used for batch in batches) / blocks,
            cached_blocks=sum(batch.blocks.cached for batch in batches) / blocks,
        )
        self._samples.append(sample)
        if self._progress is not None:
            self._progress(sample.at, self._ended)


def _work(number: int, arrival: Arrival, setup: Setup) -> Work:
    prompt = arrival.prompt_tokens
    full = prompt // arrival.block_tokens if arrival.block_tokens else 0
    return Work(
        request_id=str(number),
        tenant=arrival.tenant,
        tier=arrival.tier,
        model="model",
        prompt=range(prompt),
        sampling=Sampling(max_tokens=arrival.max_tokens or setup.max_tokens),
        deadline=arrival.at + arrival.deadline_s,
        pool=POOL,
        block_hashes=arrival.block_hashes[:full],
        block_tokens=arrival.block_tokens,
        adapter=arrival.adapter,
        weight=arrival.weight,
    )
