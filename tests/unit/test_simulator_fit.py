"""Fitting the step model: constants that are known come back, from clean observations and from noisy ones."""

import numpy as np
import pytest

from libs.catalogue.options import Simulation
from services.simulator.fit import Observation, Overhead, Shape, fit, nnls, predict, prefill
from services.simulator.probes import SHORT, Facts, Probe, Timed, design, observe, quickest

FACTS = Facts(context_tokens=8192, cache_tokens=65_536, slots=64, step_tokens=512)
OVERHEAD = Overhead(0.004, 2e-6)
ENGINE = Simulation(
    step_base_us=5000, prefill_token_us=40, sequence_us=200, prefill_context_us=10, decode_context_us=30
)
GPU = Simulation(
    step_base_us=1000, weights_us=7000, prefill_token_us=30, sequence_us=35, prefill_context_us=1, decode_context_us=50
)


def observations(engine: Simulation, noise: float = 0.0) -> tuple[list[Observation], list[Observation]]:
    """What the probes would show of it, and what is held back."""
    draw = np.random.default_rng(7)
    fitted: list[Observation] = []
    held_back: list[Observation] = []
    for probe in design(FACTS):
        seen = clean(probe)
        seconds = predict(engine, OVERHEAD, seen) * (1 + noise * draw.standard_normal())
        observation = Observation(seen.kind, seconds, seen.shapes, seen.through)
        (held_back if probe.held_back else fitted).append(observation)
    return fitted, held_back


def clean(probe: Probe) -> Observation:
    """The shape of what a probe shows, without a time."""
    if probe.kind == "prefill":
        return Observation("prefill", 0.0, prefill(probe.prompt_tokens, FACTS.step_tokens), probe.prompt_tokens)
    context = probe.width * (probe.prompt_tokens + 20.0)
    if probe.kind == "decode":
        return Observation("decode", 0.0, (Shape(30, decode=probe.width, decode_context=context),))
    steady = Shape(10, decode=probe.width, decode_context=context)
    return Observation("mixed", 0.0, (*prefill(probe.late_tokens, 512, probe.width, context), steady))


@pytest.mark.parametrize("engine", [ENGINE, GPU])
def test_known_constants_come_back(engine: Simulation) -> None:
    found = fit(*observations(engine))
    for name in Simulation.__dataclass_fields__:
        if name not in ("seed", "load_us", "host_blocks", "host_block_us"):
            assert getattr(found.simulation, name) == pytest.approx(getattr(engine, name), rel=0.03, abs=0.5), name
    assert found.overhead.request_s == pytest.approx(OVERHEAD.request_s, rel=0.1)
    assert found.median_error < 0.002


def test_noise_moves_them_little_and_shows_in_the_residuals() -> None:
    found = fit(*observations(ENGINE, noise=0.03))
    assert found.simulation.step_base_us == pytest.approx(ENGINE.step_base_us, rel=0.15)
    assert found.simulation.prefill_token_us == pytest.approx(ENGINE.prefill_token_us, rel=0.15)
    assert found.simulation.weights_us == 0, "noise was taken for weights"
    assert 0.005 < found.median_error < 0.06
    assert set(found.by_kind) == {"prefill", "decode", "mixed"}


def test_too_little_is_told() -> None:
    fitted, held_back = observations(ENGINE)
    with pytest.raises(ValueError, match="too few"):
        fit(fitted[:3], held_back)
    with pytest.raises(ValueError, match="0 held back"):
        fit(fitted, [])


def test_non_negative_least_squares() -> None:
    matrix = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert nnls(matrix, np.array([1.0, 3.0, 5.0])).tolist() == pytest.approx([1.0, 2.0])
    # The unconstrained slope is -1: at the bound the mean is best.
    assert nnls(matrix, np.array([3.0, 2.0, 1.0])).tolist() == pytest.approx([2.0, 0.0])
    assert nnls(matrix, np.array([-1.0, -1.0, -1.0])).tolist() == [0.0, 0.0]
    assert nnls(np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([1.0, 2.0])).sum() == pytest.approx(1.0)


def test_prompts_are_computed_in_chunks_beside_what_decodes() -> None:
    whole = prefill(1000, 512)
    assert [(shape.prefill, shape.prefill_context) for shape in whole] == [
        (512, 512 * 511 / 2), (488, 488 * 512 + 488 * 487 / 2),
    ]  # fmt: skip
    beside = prefill(1000, 512, beside=12, beside_context=900.0)
    assert [(shape.prefill, shape.decode, shape.decode_context) for shape in beside] == [(500, 12, 900), (500, 12, 900)]


def test_probes_fit_into_the_model() -> None:
    small = Facts(context_tokens=2048, cache_tokens=4096, slots=4, step_tokens=256)
    for facts in (FACTS, small):
        probes = design(facts)
        for probe in probes:
            together = probe.width * (probe.prompt_tokens + probe.output_tokens) + probe.late_tokens
            assert together <= facts.cache_tokens
            assert max(probe.prompt_tokens + probe.output_tokens, probe.late_tokens + 1) <= facts.context_tokens
            assert probe.width < facts.slots or not probe.late_tokens
        assert {probe.kind for probe in probes if probe.held_back} == {"prefill", "decode", "mixed"}
    with pytest.raises(ValueError, match="too short"):
        design(Facts(context_tokens=150, cache_tokens=4096, slots=4, step_tokens=256))


def stream(first: float, gap: float, tokens: int, prompt: int = SHORT, cached: int = 0) -> Timed:
    """An answer asked for at 0 whose tokens come one by one."""
    return Timed(0.0, prompt, cached, [(first + gap * index, index + 1) for index in range(tokens)])


def test_a_prompt_alone_shows_its_first_token() -> None:
    seen = observe(Probe(1, 600, 1), FACTS, [stream(0.25, 0, 1, prompt=600)], None)
    assert seen == Observation("prefill", 0.25, prefill(600, 512), through=600)


def test_a_batch_shows_its_gap_while_all_decode() -> None:
    seen = observe(Probe(2, SHORT, 40), FACTS, [stream(0.1, 0.01, 40), stream(0.2, 0.01, 40)], None)
    assert seen is not None
    (shape,) = seen.shapes
    assert seen.seconds / shape.steps == pytest.approx(0.01)
    assert shape.steps == pytest.approx(29, abs=1)  # from 0.2 s to 0.49 s
    assert shape.decode == 2
    assert shape.decode_context == pytest.approx(2 * SHORT + 15 + 25, abs=2)


def test_a_prompt_that_comes_in_shows_in_the_gaps_of_the_batch() -> None:
    """Two decode at 10 ms a step; in the two steps of the late prompt they wait 50 ms each."""
    times = [0.01 * index for index in range(1, 11)]
    times += [times[-1] + 0.05, times[-1] + 0.10]
    times += [times[-1] + 0.01 * index for index in range(1, 20)]
    batch = [Timed(0.0, SHORT, 0, [(time, index + 1) for index, time in enumerate(times)]) for _ in range(2)]
    late = Timed(0.105, 1000, 0, [(0.2, 1)])
    seen = observe(Probe(2, SHORT, 40, 1000), FACTS, batch, late)
    assert seen is not None
    assert sum(shape.steps for shape in seen.shapes) == 3  # from the token at 100 ms to the one at 210 ms
    assert seen.seconds == pytest.approx(0.11)
    assert sum(shape.prefill for shape in seen.shapes) == 1000


def test_what_did_not_meet_or_met_a_cache_is_dropped() -> None:
    apart = [stream(0.1, 0.01, 10), stream(0.5, 0.01, 10)]
    assert observe(Probe(2, SHORT, 10), FACTS, apart, None) is None
    assert observe(Probe(1, 600, 1), FACTS, [stream(0.1, 0, 1, cached=32)], None) is None
    assert observe(Probe(1, 600, 1), FACTS, [Timed(0.0, 600, 0, [])], None) is None


def test_the_quickest_run_is_believed_step_for_step() -> None:
    runs = [
        Observation("decode", seconds, (Shape(steps, decode=1),))
        for seconds, steps in ((0.3, 10), (0.2, 10), (0.21, 11))
    ]
    assert quickest(runs).seconds == 0.21
