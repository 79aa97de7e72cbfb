"""The simulator against what it simulates: the same batcher and manager, over real hosts and engines on an event loop.

All 200 requests must get their tokens at the same moment in both. The loop's time passes only while it waits, so that
it does not matter how fast the machine is, or what else runs on it. What the mesh's own code takes (some 0.1 ms, where
a step takes 4 to 20) is tests/bench's matter.
"""

import asyncio
import random
import selectors
from collections.abc import Sequence

import pytest

from libs.catalogue import ModelSpec, Simulation
from libs.lane.frame import Frame
from libs.lane.work import Note, Outcome, Sampling, Tier, Work
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import untraced
from services.batcher.executors import ExecutorInfo
from services.batcher.observe import Observer
from services.batcher.rules import FixedRules
from services.batcher.seat import ModelCapacity
from services.batcher.stage import Batcher
from services.executor.host import Host
from services.executor.simulated.engine import SimulatedEngine
from services.simulator.memory import NearMemory, Report
from services.simulator.values import Arrival, Setup
from services.simulator.world import POOL, simulate

TIMES = Simulation(
    step_base_us=3000, prefill_token_us=15, sequence_us=60, weights_us=1000, prefill_context_us=1, decode_context_us=20
)
SETUP = Setup(executors=2, step=TIMES, slots=6, blocks=200, block_tokens=16, step_tokens=256, wire_s=0.0)
TICK_S = SETUP.tick_s


class Waiting(selectors.DefaultSelector):
    """Waits without taking time: what it was to wait has passed on the loop's clock."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if events := super().select(0):
            return events
        if timeout is None:
            raise AssertionError("nothing will ever happen")
        self.passed += timeout
        return []


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop, and Clock, whose time passes only while there is nothing to do."""

    def __init__(self) -> None:
        self._waiting = Waiting()
        super().__init__(self._waiting)

    def time(self) -> float:
        return self._waiting.passed

    now = monotonic = time


class Caller:
    """The router's side over real engines: notes when first tokens and outcomes come, in seconds from the start."""

    def __init__(self, expected: int) -> None:
        self.first: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.done = asyncio.Event()
        self._expected = expected
        self._loop = asyncio.get_running_loop()
        self.start = self._loop.time()

    @property
    def now(self) -> float:
        return self._loop.time() - self.start

    def on_ready(self) -> None: ...

    def on_note(self, work_id: int, note: Note) -> None: ...

    def on_broken(self, reason: str) -> None:
        raise AssertionError(reason)

    def on_frame(self, frame: Frame) -> None:
        for work_id in frame.work_ids.tolist():
            self.first.setdefault(work_id, self.now)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        self.ended[work_id], self.outcomes[work_id] = self.now, outcome
        if len(self.ended) == self._expected:
            self.done.set()


def arrivals() -> list[Arrival]:
    """200 requests in 5 s, some of them in a burst, that share prefixes."""
    chance, at, found = random.Random(5), 0.0, []
    for number in range(200):
        at += chance.expovariate(400 if 60 <= number < 90 else 36)
        prompt, family = chance.randint(20, 600), chance.randrange(8)
        hashes = tuple(
            family * 1000 + index if index < 12 else 10_000 * (number + 1) + index for index in range(prompt // 16)
        )
        outputs = chance.randint(1, 40)
        found.append(Arrival(at, "t", Tier.INTERACTIVE, prompt, outputs, hashes, 16, max_tokens=outputs))
    return found


def work(number: int, arrival: Arrival, start: float) -> Work:
    """An arrival for real engines."""
    return Work(
        str(number), arrival.tenant, arrival.tier, "model", range(arrival.prompt_tokens),
        Sampling(max_tokens=arrival.max_tokens, ignore_end=True), deadline=start + arrival.at + arrival.deadline_s,
        pool=POOL, block_hashes=arrival.block_hashes, block_tokens=arrival.block_tokens,
    )  # fmt: skip


async def over_real_engines(coming: Sequence[Arrival]) -> Caller:
    """Runs the arrivals through the batcher over two hosts with simulated engines."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, PatientLoop)
    clock, engine, infos = loop, SimulatedEngine(loop), {}
    memory = NearMemory(clock, SETUP.scheduling)
    spec = ModelSpec(
        "model", "", 10_000, SETUP.blocks, SETUP.block_tokens, SETUP.slots, SETUP.step_tokens, simulation=TIMES
    )
    capacity = ModelCapacity(SETUP.slots, SETUP.blocks, SETUP.block_tokens, SETUP.slots, step_tokens=SETUP.step_tokens)
    for name in ("executor-000", "executor-001"):
        report = Report(memory, name, POOL, SETUP.blocks, SETUP.block_tokens)
        host = Host(name, untraced(), lambda _, step, report=report: report.events(step.events), lambda *_: None)  # type: ignore[misc]
        copy = host.host(POOL)
        copy.runner = await engine.load(spec, copy)
        infos[name] = ExecutorInfo(host, {POOL: capacity})
    batcher = Batcher(
        "batcher", memory, FixedRules(), untraced(), Observer(Metrics("test", "batcher", "0")), clock,
        random.Random(0).randrange,
    )  # fmt: skip
    batcher.set_executors(infos)
    caller = Caller(len(coming))
    lane, start = batcher.open(caller), clock.now()

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            batcher.tick()

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        ticking = tasks.create_task(tick())
        for number, arrival in enumerate(coming):
            loop.call_at(caller.start + arrival.at, lane.submit, number, work(number, arrival, start))
        await caller.done.wait()
        ticking.cancel()
    batcher.close()
    await engine.close()
    return caller


def test_the_simulator_is_right() -> None:
    coming = arrivals()
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        real = runner.run(over_real_engines(coming))
    virtual = simulate(SETUP, coming)
    for number, (arrival, served) in enumerate(zip(coming, virtual.served, strict=True)):
        outcome = real.outcomes[number]
        assert (served.outcome, outcome.error) == ("ok", None)
        assert (outcome.output_tokens, outcome.cached_tokens) == (served.output_tokens, served.cached_tokens)
        assert real.first[number] - arrival.at == pytest.approx(served.first_token_s, abs=1e-9)
        assert real.ended[number] - arrival.at == pytest.approx(served.end_s, abs=1e-9)
    assert sum(served.cached_tokens for served in virtual.served) > 0
