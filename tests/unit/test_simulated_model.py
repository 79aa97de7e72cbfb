"""The simulated model: the same answer whatever happens on the way, and books that add up."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.catalogue import ModelSpec, Simulation
from libs.errors import Cancelled, DeadlinePassed, NotSupported, RequestInvalid
from libs.kvcache.values import CacheTier
from libs.lane.work import FinishReason, Grammar, Outcome, Sampling, Tier, Work
from libs.tokens.blocks import chain
from services.executor.engine import BlockEvent, Exactness, Step
from services.executor.simulated import answers
from services.executor.simulated.model import SimulatedModel

BLOCK = 4
NEVER = float("inf")
NO_TIME = Simulation()


def spec(
    *, blocks: int = 64, slots: int = 4, step_tokens: int = 16, context: int = 200, times: Simulation = NO_TIME
) -> ModelSpec:
    return ModelSpec("sim", "simulated:", context, blocks, BLOCK, slots, step_tokens, simulation=times)


def work(
    prompt: list[int],
    max_tokens: int = 5,
    *,
    resumed: list[int] | None = None,
    hashes: list[int] | None = None,
    seed: int | None = None,
    ignore_end: bool = True,
    log_probs: bool = False,
    deadline: float = NEVER,
) -> Work:
    sampling = Sampling(max_tokens=max_tokens, seed=seed, ignore_end=ignore_end)
    return Work(
        "r", "t", Tier.INTERACTIVE, "sim", prompt, sampling, deadline, resumed=resumed or [],
        block_hashes=hashes or [], block_tokens=BLOCK, log_probs=log_probs,
    )  # fmt: skip


class Run:
    """Steps a model and takes its answers in as a lane would: by offset, without gaps."""

    def __init__(self, model: SimulatedModel) -> None:
        self.model = model
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.log_probs: dict[int, list[float]] = defaultdict(list)
        self.outcomes: dict[int, Outcome] = {}
        self.started: dict[int, int] = {}
        self.steps: list[Step] = []
        self.events: list[BlockEvent] = []

    def submit(self, work_id: int, one: Work) -> None:
        self.tokens[work_id] = list(one.resumed)
        self.model.submit(work_id, one)

    def step(self, now: float = 0.0) -> Step:
        step, _duration = self.model.step(now)
        self.model.check_integrity()
        frame, end = step.frame, 0
        for work_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
            start, end = end, end + count
            assert offset == len(self.tokens[work_id]), "a gap or a repeat"
            assert work_id not in self.outcomes, "tokens behind the outcome"
            self.tokens[work_id] += frame.token_ids[start:end]
            self.log_probs[work_id] += frame.log_probs[start:end]
        for work_id, outcome in step.outcomes:
            assert work_id not in self.outcomes, "two outcomes"
            self.outcomes[work_id] = outcome
            assert outcome.output_tokens == len(self.tokens[work_id])
        for work_id, cached in step.started:
            assert work_id not in self.started
            self.started[work_id] = cached
        self.events += step.events
        self.steps.append(step)
        return step

    def finish(self, limit: int = 3000) -> "Run":
        while not self.model.idle:
            self.step()
            assert len(self.steps) < limit, "the model makes no progress"
        return self


def answer_of(one: Work, seed: int = 0) -> list[int]:
    """What must come out, from the answers' definition alone."""
    tokens = answers.tokens(answers.digest(seed, one.sampling.seed, one.prompt), 0)
    return [next(tokens) for _ in range(one.sampling.max_tokens)]


def test_an_answer_comes_token_by_token() -> None:
    run = Run(SimulatedModel(spec()))
    run.submit(7, work([1, 2, 3], 5))
    run.finish()
    assert run.tokens[7] == answer_of(work([1, 2, 3], 5))
    assert [len(step.frame.token_ids) for step in run.steps] == [1] * 5
    assert run.outcomes[7] == Outcome(finish=FinishReason.LENGTH, output_tokens=5)
    assert run.steps[-1].stats.blocks_used == 0
    assert run.model.capacity.exactness is Exactness.EXACT


def test_tokens_lie_in_their_range_and_depend_on_seed_and_prompt() -> None:
    streams = {
        tuple(next(tokens) for _ in range(600))
        for tokens in (
            answers.tokens(answers.digest(model_seed, sampling_seed, prompt), 0)
            for model_seed, sampling_seed, prompt in ((0, None, [1]), (1, None, [1]), (0, 0, [1]), (0, None, [1, 0]))
        )
    }
    assert len(streams) == 4
    for stream in streams:
        assert all(1000 <= token < 3048 for token in stream)
        assert len(set(stream)) > 400


def test_known_answers() -> None:
    """Pins the definition: splitmix64's published outputs for the state 1234567, and an answer of ours."""
    words = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    tokens = answers.tokens(1234567, 0)
    assert [next(tokens) for _ in words] == [1000 + word % 2048 for word in words]
    tokens = answers.tokens(answers.digest(42, 7, [1, 2, 3]), 0)
    assert [next(tokens) for _ in range(6)] == [2419, 1671, 1103, 1130, 2435, 1245]


def test_log_probs_are_exact_floats_below_zero_and_only_for_those_who_ask() -> None:
    run = Run(SimulatedModel(spec()))
    run.submit(1, work([1], 5, log_probs=True))
    run.submit(2, work([2], 5))
    run.finish()
    assert all(-2 < value <= 0 and (value * 2048).is_integer() for value in run.log_probs[1])
    assert len(set(run.log_probs[1])) == 5
    assert all(value != value for value in run.log_probs[2])


def test_without_log_probs_frames_have_none() -> None:
    run = Run(SimulatedModel(spec()))
    run.submit(1, work([1]))
    run.finish()
    assert not any(step.frame.log_probs for step in run.steps)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_happens_the_answer_is_the_same(data: st.DataObject) -> None:
    """Small caches that preempt, slots that make works wait, resumes, shared prefixes and cancels."""
    blocks = data.draw(st.integers(8, 24), "blocks")
    model = SimulatedModel(
        spec(blocks=blocks, slots=data.draw(st.integers(1, 6)), step_tokens=data.draw(st.integers(1, 20)), context=32)
    )
    run, works, cancelled = Run(model), {}, set()
    for work_id in range(data.draw(st.integers(1, 12), "works")):
        length = data.draw(st.integers(1, 14))
        one = work([5] * length, data.draw(st.integers(1, 14)), hashes=list(range(1, length // BLOCK + 1)))
        resumed = data.draw(st.integers(0, one.sampling.max_tokens))
        one = work(
            list(one.prompt), one.sampling.max_tokens, resumed=answer_of(one)[:resumed], hashes=list(one.block_hashes)
        )
        works[work_id] = one
        run.submit(work_id, one)
        for _ in range(data.draw(st.integers(0, 3))):
            run.step()
        if data.draw(st.booleans()) and (candidates := sorted(works.keys() - run.outcomes.keys())):
            victim = data.draw(st.sampled_from(candidates))
            model.cancel(victim)
            cancelled.add(victim)
    run.finish()
    assert run.outcomes.keys() == works.keys()
    for work_id, one in works.items():
        if run.outcomes[work_id].finish:
            assert run.tokens[work_id] == answer_of(one)
        else:
            assert work_id in cancelled
            assert run.tokens[work_id] == answer_of(one)[: len(run.tokens[work_id])]
    assert run.steps[-1].stats.running == run.steps[-1].stats.blocks_used == 0


def test_blocks_that_run_out_preempt_the_youngest_and_nobody_notices() -> None:
    run = Run(SimulatedModel(spec(blocks=8, slots=4)))
    works = {i: work([i + 1] * 3, 20) for i in range(4)}
    for work_id, one in works.items():
        run.submit(work_id, one)
    run.step()
    assert run.steps[0].stats.running == 4
    run.finish()
    assert min(step.stats.running for step in run.steps[:-1]) < 4
    assert {i: run.tokens[i] for i in works} == {i: answer_of(one) for i, one in works.items()}
    assert list(run.outcomes) == [0, 1, 2, 3]


def test_prompts_are_prefilled_in_chunks_while_others_decode() -> None:
    run = Run(SimulatedModel(spec(step_tokens=10)))
    run.submit(1, work([1], 10))
    run.step()
    run.submit(2, work([2] * 25, 3))
    steps = [run.step() for _ in range(3)]  # 9 tokens of the budget are left beside the one that decodes
    assert [step.frame.work_ids for step in steps] == [[1], [1], [1, 2]]
    assert [step.started for step in steps] == [[(2, 0)], [], []]


def test_works_beyond_the_slots_wait_in_order() -> None:
    run = Run(SimulatedModel(spec(slots=2)))
    for work_id in range(5):
        run.submit(work_id, work([work_id + 1], 3))
    run.step()
    assert (run.steps[0].stats.running, run.steps[0].stats.waiting) == (2, 3)
    run.finish()
    assert list(run.started) == list(run.outcomes) == [0, 1, 2, 3, 4]


def test_a_shared_prefix_is_computed_once_and_told() -> None:
    run = Run(SimulatedModel(spec()))
    run.submit(1, work([9] * 10, 3, hashes=[11, 12]))
    run.finish()
    run.submit(2, work([9] * 10, 3, hashes=[11, 12]))
    run.finish()
    assert run.started == {1: 0, 2: 8}
    assert run.outcomes[2].cached_tokens == 8
    assert run.tokens[1] == run.tokens[2]
    assert run.events == [BlockEvent("stored", (11, 12))]


def test_hashes_of_another_block_size_are_ignored() -> None:
    model = SimulatedModel(ModelSpec("sim", "simulated:", 200, 64, BLOCK * 2, 4, 16))
    run = Run(model)
    run.submit(1, work([9] * 10, 3, hashes=[11, 12]))
    run.finish()
    assert run.events == []


def test_a_cancel_frees_within_the_step() -> None:
    run = Run(SimulatedModel(spec()))
    run.submit(1, work([1] * 8, 50))
    run.submit(2, work([2] * 8, 50))
    run.step()
    run.model.cancel(1)
    run.model.cancel(99)
    step = run.step()
    assert isinstance(run.outcomes[1].error, Cancelled)
    assert step.frame.work_ids == [2]
    assert step.stats.blocks_used == 3


def test_ends() -> None:
    """Full context: LENGTH. The digest's end: STOP, at the same token however it was resumed."""
    run = Run(SimulatedModel(spec(context=12)))
    run.submit(1, work([1] * 10, 50))
    run.finish()
    assert run.outcomes[1] == Outcome(finish=FinishReason.LENGTH, output_tokens=2)

    prompt, end = min(
        (([number], answers.length(answers.digest(0, None, [number]))) for number in range(1, 400)),
        key=lambda pair: pair[1],
    )
    run = Run(SimulatedModel(spec()))
    full = answer_of(work(prompt, end))
    run.submit(1, work(prompt, 150, ignore_end=False))
    run.submit(2, work(prompt, 150, ignore_end=False, resumed=full[: end // 2]))
    run.submit(3, work(prompt, 150, ignore_end=False, resumed=full))
    run.submit(4, work(prompt, 150))
    run.finish()
    assert {run.outcomes[i] for i in (1, 2, 3)} == {Outcome(finish=FinishReason.STOP, output_tokens=end)}
    assert run.outcomes[4].output_tokens == 150


def test_own_ends_are_thousands_of_tokens_away() -> None:
    lengths = [answers.length(answers.digest(0, None, [number])) for number in range(2000)]
    assert 3500 < sum(lengths) / len(lengths) < 4700
    assert min(lengths) >= 1


def test_bad_works_end_in_errors_of_their_own() -> None:
    run = Run(SimulatedModel(spec(context=12)))
    bad = work([1])
    run.submit(1, work([]))
    run.submit(2, work([1] * 12))
    run.submit(3, work([1], 0))
    run.submit(4, Work("r", "t", Tier.ASYNC, "sim", [1], bad.sampling, NEVER, grammar=Grammar("regex", "a")))
    run.submit(5, work([1], deadline=99.0))
    run.step(now=100.0)
    errors = {work_id: type(outcome.error) for work_id, outcome in run.outcomes.items()}
    assert errors == {1: RequestInvalid, 2: RequestInvalid, 3: RequestInvalid, 4: NotSupported, 5: DeadlinePassed}
    run.submit(6, bad)
    with pytest.raises(ValueError, match="runs already"):
        run.model.submit(6, bad)


def test_a_step_takes_what_the_formula_says() -> None:
    model = SimulatedModel(spec(times=Simulation(step_base_us=1000, prefill_token_us=10, sequence_us=100)))
    model.submit(1, work([1] * 8, 3))
    model.submit(2, work([2] * 8, 3))
    durations = [model.step(0.0)[1] for _ in range(3)]
    assert durations == pytest.approx([0.001160, 0.0012, 0.0012])
    assert model.idle
    assert model.step(0.0)[1] == 0


def test_a_step_takes_longer_the_more_it_looks_back_on() -> None:
    times = Simulation(weights_us=50, prefill_token_us=10, prefill_context_us=1e6, sequence_us=1, decode_context_us=1e6)
    model = SimulatedModel(spec(times=times, step_tokens=6))
    model.submit(1, work([1] * 8, 3))
    model.submit(2, work([2] * 3, 4))
    durations = [model.step(0.0)[1] * 1e6 for _ in range(6)]
    assert model.idle
    assert durations == pytest.approx(
        [
            60 + 1000 * (0 + 1 + 2 + 3 + 4 + 5),  # six tokens of the first prompt
            50 + 1000 * (6 + 7 + 0 + 1 + 2),  # the weights take longer than 5 tokens, of two prompts
            50 + 1000 * (9 + 4),  # both decode
            50 + 1000 * (10 + 5),
            50 + 1000 * 6,
            0,
        ]
    )


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    blocks=st.integers(20, 60),
    step_tokens=st.integers(1, 40),
    cancel=st.integers(0, 20),
)
def test_contexts_are_those_of_the_sequences_whatever_happens(
    prompts: list[int], blocks: int, step_tokens: int, cancel: int
) -> None:
    """The time of a step, by counting what each token of its frame looked back on; also when works are preempted."""
    prefill_s = 1e6
    times = Simulation(decode_context_us=1000.0, prefill_token_us=prefill_s * 1e6)
    model = SimulatedModel(spec(times=times, blocks=blocks, step_tokens=step_tokens))
    for index, length in enumerate(prompts):
        model.submit(index, work([index] * length, 12))
    for number in range(2000):
        if model.idle:
            break
        if number == cancel:
            model.cancel(0)
        step, duration_s = model.step(0.0)
        if duration_s < prefill_s:  # every token of the frame was decoded
            frame = step.frame
            looked_back_on = sum(prompts[i] + at for i, at in zip(frame.work_ids, frame.offsets, strict=True))
            assert duration_s * 1e6 == pytest.approx(looked_back_on)
    assert model.idle


def test_a_prefix_comes_back_from_the_host_in_its_time() -> None:
    times = Simulation(host_blocks=8, host_block_us=500)
    run = Run(SimulatedModel(spec(blocks=6, times=times)))
    first, second = list(range(100, 104)), list(range(200, 205))
    run.submit(1, work([1] * 17, 1, hashes=first))
    run.finish()
    run.submit(2, work([2] * 21, 1, hashes=second))
    run.finish()
    model = run.model
    model.submit(3, work([1] * 17, 1, hashes=first))
    step, duration_s = model.step(0.0)
    assert step.started == [(3, 16)]
    assert duration_s == pytest.approx(4 * 500e-6)
    back = [event for event in step.events if event.tier is CacheTier.HOST and event.kind == "removed"]
    assert sorted(back[0].hashes) == first
    assert [outcome.cached_tokens for _, outcome in step.outcomes] == [16]


@settings(max_examples=40)
@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12),
    slots=st.integers(1, 4),
    host_blocks=st.integers(0, 40),
)
def test_answers_do_not_depend_on_where_the_prefix_lay(prompts: list[list[int]], slots: int, host_blocks: int) -> None:
    """Prompts of whole blocks that begin alike; whoever follows the events knows what is where at the end."""
    run = Run(SimulatedModel(spec(blocks=14, slots=slots, times=Simulation(host_blocks=host_blocks))))
    works = []
    for path in prompts:
        prompt = [word for word in path for _ in range(BLOCK)]
        works.append(work(prompt, 3, hashes=chain(prompt, BLOCK, b"")))
    for index, one in enumerate(works):
        run.submit(index, one)
    run.finish()
    assert [run.tokens[index] for index in range(len(works))] == [answer_of(one) for one in works]
    where: dict[CacheTier, set[int]] = {CacheTier.DEVICE: set(), CacheTier.HOST: set()}
    for event in run.events:
        if event.kind == "stored":
            assert not where[event.tier] & set(event.hashes)
            where[event.tier] |= set(event.hashes)
        else:
            assert where[event.tier] >= set(event.hashes)
            where[event.tier] -= set(event.hashes)
    assert not where[CacheTier.DEVICE] & where[CacheTier.HOST]
    assert len(where[CacheTier.DEVICE]) == run.steps[-1].stats.blocks_cached
    assert len(where[CacheTier.HOST]) <= host_blocks
