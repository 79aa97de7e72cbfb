"""The simulated engine on a real event loop: schedule, fairness to the loop, life and death."""

import asyncio
import time
from collections import defaultdict

import pytest

from libs.catalogue import ModelSpec, Simulation
from libs.clock import ManualClock
from libs.errors import Cancelled, DeadlinePassed
from libs.lane.work import Outcome, Sampling, Tier, Work
from services.executor.engine import Engine, LoadFailed, Runner, Step
from services.executor.simulated.engine import SimulatedEngine


class Ear:
    """A Listener that writes down what it hears."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.outcomes: dict[int, Outcome] = {}
        self.steps = 0
        self.broken = ""
        self._changed = asyncio.Event()

    def on_step(self, step: Step) -> None:
        self.steps += 1
        end = 0
        for work_id, count in zip(step.frame.work_ids, step.frame.counts, strict=True):
            start, end = end, end + count
            self.tokens[work_id] += step.frame.token_ids[start:end]
        self.outcomes.update(step.outcomes)
        self._changed.set()

    def on_broken(self, reason: str) -> None:
        self.broken = reason
        self._changed.set()

    async def heard(self, works: int) -> None:
        while len(self.outcomes) < works and not self.broken:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 10)


def spec(slots: int = 8, **times: float) -> ModelSpec:
    return ModelSpec("sim", "simulated:", 4096, 1024, 16, slots, 256, simulation=Simulation(**times))  # type: ignore[arg-type]


def work(max_tokens: int, prompt: int = 1, deadline: float = float("inf")) -> Work:
    sampling = Sampling(max_tokens=max_tokens, ignore_end=True)
    return Work("r", "t", Tier.INTERACTIVE, "sim", [prompt], sampling, deadline)


async def test_it_is_an_engine() -> None:
    engine: Engine = SimulatedEngine()
    ear = Ear()
    runner: Runner = await engine.load(spec(), ear)
    assert runner.capacity.slots == 8
    for work_id in range(20):
        runner.submit(work_id, work(10, work_id))
    await ear.heard(20)
    assert {len(tokens) for tokens in ear.tokens.values()} == {10}
    await engine.close()


async def test_steps_keep_their_schedule() -> None:
    """50 steps of 4 ms take 0.2 s, although the listener keeps the loop for a while after each: the two overlap."""
    kept_s = 0.0

    class Slow(Ear):
        def on_step(self, step: Step) -> None:
            nonlocal kept_s
            super().on_step(step)
            began = time.perf_counter()
            time.sleep(0.003)
            kept_s += time.perf_counter() - began

    engine, ear = SimulatedEngine(), Slow()
    runner = await engine.load(spec(step_base_us=4000), ear)
    start = time.perf_counter()
    runner.submit(1, work(50))
    await ear.heard(1)
    assert 0.195 < time.perf_counter() - start < 0.2 + kept_s
    assert ear.steps == 50
    await engine.close()


async def test_steps_without_time_leave_the_loop_to_others() -> None:
    engine, ear = SimulatedEngine(), Ear()
    runner = await engine.load(spec(), ear)
    runner.submit(1, work(4000))
    turns = 0
    while not ear.outcomes:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 4000
    assert ear.steps == 4000
    await engine.close()


async def test_an_idle_runner_rests_and_wakes() -> None:
    engine, ear = SimulatedEngine(), Ear()
    runner = await engine.load(spec(step_base_us=100), ear)
    runner.submit(1, work(3))
    await ear.heard(1)
    steps = ear.steps
    await asyncio.sleep(0.02)
    runner.cancel(1)
    await asyncio.sleep(0.02)
    assert ear.steps == steps
    runner.submit(2, work(3))
    await ear.heard(2)
    await engine.close()


async def test_a_cancel_ends_within_a_step() -> None:
    engine, ear = SimulatedEngine(), Ear()
    runner = await engine.load(spec(step_base_us=1000), ear)
    runner.submit(1, work(4000))
    await asyncio.sleep(0.02)
    runner.cancel(1)
    steps = ear.steps
    await ear.heard(1)
    assert isinstance(ear.outcomes[1].error, Cancelled)
    assert ear.outcomes[1].output_tokens == len(ear.tokens[1])
    assert ear.steps <= steps + 2  # the one in flight, and the one that tells
    await engine.close()


async def test_deadlines_go_by_the_clock_given() -> None:
    clock, ear = ManualClock(start=1000.0), Ear()
    engine = SimulatedEngine(clock=clock)
    runner = await engine.load(spec(), ear)
    runner.submit(1, work(3, deadline=999.0))
    runner.submit(2, work(3, deadline=1001.0))
    await ear.heard(2)
    assert isinstance(ear.outcomes[1].error, DeadlinePassed)
    assert ear.outcomes[2].error is None
    await engine.close()


async def test_nothing_is_heard_after_close() -> None:
    engine, ear = SimulatedEngine(), Ear()
    runner = await engine.load(spec(step_base_us=1000), ear)
    runner.submit(1, work(100))
    await asyncio.sleep(0.01)
    await runner.close()
    steps = ear.steps
    await asyncio.sleep(0.01)
    assert ear.steps == steps
    assert not ear.outcomes
    with pytest.raises(RuntimeError, match="closed"):
        runner.submit(2, work(1))


async def test_closing_inside_a_step_is_the_end() -> None:
    class Closer(Ear):
        def on_step(self, step: Step) -> None:
            super().on_step(step)
            closing.append(asyncio.ensure_future(runner.close()))

    closing: list[asyncio.Future[None]] = []
    engine, ear = SimulatedEngine(), Closer()
    runner = await engine.load(spec(step_base_us=100), ear)
    runner.submit(1, work(100))
    await asyncio.sleep(0.02)
    await asyncio.gather(*closing)
    assert ear.steps <= 2


async def test_a_model_without_room_does_not_load() -> None:
    with pytest.raises(LoadFailed, match="at least 1"):
        await SimulatedEngine().load(spec(slots=0), Ear())
    with pytest.raises(LoadFailed, match="answer is wrong"):
        await SimulatedEngine().load(ModelSpec("sim", "simulated:", 1, 1, 16, 1, 1), Ear())
