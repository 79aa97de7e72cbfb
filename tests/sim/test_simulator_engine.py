"""The fast engine against the simulated model, step by step, on random loads."""

import random
from dataclasses import dataclass, field
from functools import partial

import pytest
from msgspec.structs import replace

from libs.catalogue import ModelSpec, Simulation
from libs.lane.work import Outcome, Sampling, Tier, Work
from services.executor.blocks import PagedBlocks
from services.executor.engine import BlockEvent
from services.executor.simulated.model import SimulatedModel
from services.simulator.batch import Batch
from services.simulator.engine import Engine
from services.simulator.loop import Loop
from services.simulator.record import Record
from services.simulator.step import Told
from services.simulator.values import Arrival

BLOCK = 16
TIMES = Simulation(
    step_base_us=800, prefill_token_us=30, sequence_us=40, weights_us=900, prefill_context_us=2.5,
    decode_context_us=90, host_blocks=40, host_block_us=70,
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What arrives, and what is cancelled."""

    slots: int
    blocks: int
    step_tokens: int
    works: list[tuple[float, Work]]
    cancels: list[tuple[float, int]]

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec("m", "", 10_000, self.blocks, BLOCK, self.slots, self.step_tokens, simulation=TIMES)

    @property
    def moments(self) -> list[tuple[float, int, Work | None]]:
        """(when, which, the work that arrives or None for a cancel), in order."""
        arriving = [(at, number, work) for number, (at, work) in enumerate(self.works)]
        return sorted([*arriving, *((at, number, None) for at, number in self.cancels)], key=lambda moment: moment[0])


@dataclass
class Seen:
    """What an engine did: when each work's first token came, when which outcome, and when which blocks changed."""

    first: dict[int, float] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)
    outcomes: dict[int, tuple[float, str, int, int]] = field(default_factory=dict)
    events: list[tuple[float, BlockEvent]] = field(default_factory=list)

    def ended(self, at: float, work_id: int, outcome: Outcome) -> None:
        reason = "ok" if outcome.error is None else outcome.error.reason
        self.outcomes[work_id] = (at, reason, outcome.output_tokens, outcome.cached_tokens)


def make(seed: int, *, cancels: bool, blocks: int, longest: int = 90) -> Load:
    """A load that fills slots and shares prefixes."""
    chance = random.Random(seed)
    slots = chance.choice([1, 2, 5, 12])
    works, at = [], 0.0
    for number in range(chance.randint(3, 40)):
        at += chance.choice([0.0, chance.expovariate(50), chance.expovariate(5)])
        prompt = chance.choice([1, BLOCK, chance.randint(1, 40), chance.randint(100, 400)])
        family, shared = chance.randrange(3), chance.randrange(20)
        hashes = [
            family * 1000 + index if index < shared else 10_000 * (number + 1) + index
            for index in range(prompt // BLOCK)
        ]
        sampling = Sampling(max_tokens=chance.choice([1, 2, chance.randint(1, longest)]), ignore_end=True)
        deadline = at + chance.choice([0.01, 1e9, 1e9, 1e9])
        works.append((at, Work(
            str(number), "t", Tier.INTERACTIVE, "m", [number] * prompt, sampling, deadline, block_hashes=hashes,
            block_tokens=BLOCK,
        )))  # fmt: skip
    dropped = [(at + chance.expovariate(10), number) for number, (at, _) in enumerate(works) if chance.random() < 0.3]
    return Load(slots, blocks, chance.choice([8, 64, 300]), works, dropped if cancels else [])


def by_model(load: Load) -> Seen:
    """What SimulatedModel does, its steps one after the other as SimulatedRunner takes them."""
    model, seen, moments = SimulatedModel(load.spec), Seen(), load.moments
    last: dict[int, float] = {}
    now = 0.0
    while moments or not model.idle:
        if model.idle:
            now = max(now, moments[0][0])
        while moments and moments[0][0] <= now:
            take(model, *moments.pop(0)[1:])
        step, duration = model.step(now)
        now += duration
        while moments and moments[0][0] < now:
            take(model, *moments.pop(0)[1:])
        for work_id in step.frame.work_ids:
            if work_id in seen.first:
                seen.gaps[work_id] = max(seen.gaps.get(work_id, 0.0), now - last[work_id])
            seen.first.setdefault(work_id, now)
            last[work_id] = now
        for work_id, outcome in step.outcomes:
            seen.ended(now, work_id, outcome)
        seen.events += [(now, event) for event in step.events]
        model.check_integrity()
    return seen


def take(model: SimulatedModel, number: int, work: Work | None) -> None:
    """One moment of a load."""
    if work is None:
        model.cancel(number)
    else:
        model.submit(number, work)


def by_engine(load: Load) -> tuple[Seen, Engine]:
    """What the fast engine does."""
    loop, seen = Loop(), Seen()

    def tell(told: Told) -> None:
        for work_id, outcome in told.outcomes:
            seen.ended(loop.time, work_id, outcome)
        seen.events += [(loop.time, event) for event in told.events]
        engine.batch.check_integrity()

    blocks = PagedBlocks(load.blocks, BLOCK, TIMES.host_blocks)
    engine = Engine(loop, TIMES, Batch("e", load.slots, blocks, load.step_tokens), tell)
    records = []
    for number, (at, work) in enumerate(load.works):
        outputs = work.sampling.max_tokens
        arrival = Arrival(at, "t", work.tier, len(work.prompt), outputs, tuple(work.block_hashes), BLOCK)
        records.append(Record(number, arrival))
    for at, number, arriving in load.moments:
        if arriving is None:
            loop.at(at, partial(engine.cancel, number))
        else:
            loop.at(at, partial(engine.submit, number, arriving, records[number]))
    while loop.step():
        pass
    for record in records:
        if record.first_at is not None:
            seen.first[record.number] = record.first_at
        if record.worst_gap_s:
            seen.gaps[record.number] = record.worst_gap_s
    return seen, engine


@pytest.mark.parametrize("cancels", [False, True])
def test_the_fast_engine_does_what_the_simulated_model_does(cancels: bool) -> None:
    for seed in range(60):
        load = make(seed, cancels=cancels, blocks=600)
        expected, (seen, engine) = by_model(load), by_engine(load)
        assert engine.batch.preemptions == 0
        same(expected, seen, seed)


def test_it_also_runs_out_of_blocks_as_the_simulated_model_does() -> None:
    preemptions = 0
    for seed in range(60):
        load = make(seed, cancels=False, blocks=60, longest=400)
        expected, (seen, engine) = by_model(load), by_engine(load)
        preemptions += engine.batch.preemptions
        same(expected, seen, seed)
    assert preemptions > 15


def test_a_long_answer_costs_few_events() -> None:
    work = Work("0", "t", Tier.INTERACTIVE, "m", [0] * 100, Sampling(max_tokens=8000, ignore_end=True), 1e9)
    load = Load(4, 1000, 64, [(0.0, work), (0.5, replace(work, request_id="1"))], [])
    seen, engine = by_engine(load)
    assert len(seen.outcomes) == 2
    assert engine.steps > 8000
    assert engine.loop.planned < 2 * 8000 / BLOCK + 20  # each block that a sequence grows into is one


def same(expected: Seen, seen: Seen, seed: int) -> None:
    """Raises AssertionError, with the seed, unless both did the same at the same times."""
    assert seen.first == pytest.approx(expected.first, rel=1e-9), seed
    assert seen.gaps == pytest.approx(expected.gaps, rel=1e-6), seed
    assert seen.outcomes.keys() == expected.outcomes.keys(), seed
    for work_id, (at, *how) in expected.outcomes.items():
        assert seen.outcomes[work_id][0] == pytest.approx(at, rel=1e-9), seed
        assert list(seen.outcomes[work_id][1:]) == how, seed
    assert [event for _, event in seen.events] == [event for _, event in expected.events], seed
    times = [at for at, _ in seen.events]
    assert times == pytest.approx([at for at, _ in expected.events], rel=1e-9), seed
