"""Fits the step model (libs.catalogue.Simulation.step_s) to what was measured from outside. Pure.

An observation is a stretch of time in which the engine made known steps. With the regime of each step given (the
weights bound it, or its tokens do), its length is linear in the constants, and none of these is negative: a
non-negative least-squares problem (Lawson and Hanson, "Solving Least Squares Problems", 1974). It is solved exactly
by trying every set of columns, of which there are few. The regimes are found by turns: fit, sort the steps anew, fit
again.

Rows are scaled by the time measured, so that a gap of 5 ms counts as much as a prompt of 5 s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from libs.catalogue.options import Simulation

Array = npt.NDArray[np.float64]

COLUMNS = (
    "step_base_us", "weights_us", "prefill_token_us", "sequence_us", "prefill_context_us", "decode_context_us",
    "overhead_us", "overhead_token_us",
)  # fmt: skip
_WEIGHTS = COLUMNS.index("weights_us")
_BOUNDS = (2.5, 6.5, 12.5, 24.5, 48.5, 96.5, 192.5)
"""Tokens of a step below which the weights may bound it: where the search for the regimes begins."""
_TURNS = 20
WORTH = 0.9
"""The weights are taken into the model where they bring the error below this part of that without them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Steps that are all alike; fields as in Simulation.step_s."""

    steps: float
    prefill: float = 0.0
    prefill_context: float = 0.0
    decode: float = 0.0
    decode_context: float = 0.0


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured stretch of time."""

    kind: str
    """For whoever reads the residuals: "prefill", "decode", "mixed"."""
    seconds: float
    shapes: tuple[Shape, ...]
    through: int = 0
    """Tokens of the prompt whose way to the engine is in it, as it is in a first token; 0 for a gap between tokens."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the way through the mesh and back takes. It is no part of the step model, only told apart from it."""

    request_s: float
    token_s: float
    """For each token of the prompt: to cut it into tokens, and to hash its blocks."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The constants, and how well they tell what they were not fitted to."""

    simulation: Simulation
    overhead: Overhead
    observations: int
    held_back: int
    median_error: float
    """Relative, of the observations held back."""
    p90_error: float
    by_kind: dict[str, tuple[int, float, float]]
    """The same for each kind: how many, median, p90."""


def prefill(tokens: int, step_tokens: int, beside: int = 0, beside_context: float = 0.0) -> tuple[Shape, ...]:
    """The steps that compute a prompt in chunks, beside so many sequences that decode.

    Args:
        tokens: Of the prompt.
        step_tokens: Most tokens of a step, those of the sequences among them.
        beside: Sequences that decode meanwhile.
        beside_context: Their contexts in tokens, added up.
    """
    chunk = max(1, step_tokens - beside)
    starts = range(0, tokens, chunk)
    counts = [min(chunk, tokens - start) for start in starts]
    return tuple(
        Shape(1, count, count * start + count * (count - 1) / 2, beside, beside_context)
        for start, count in zip(starts, counts, strict=True)
    )


def predict(simulation: Simulation, overhead: Overhead, observation: Observation) -> float:
    """Seconds that an observation takes by the model."""
    total = overhead.request_s + observation.through * overhead.token_s if observation.through else 0.0
    for shape in observation.shapes:
        dense = shape.prefill * simulation.prefill_token_us + shape.decode * simulation.sequence_us
        attention = shape.prefill_context * simulation.prefill_context_us
        attention += shape.decode_context * simulation.decode_context_us
        each = simulation.step_base_us + max(simulation.weights_us, dense) + attention / 1000
        total += shape.steps * each / 1e6
    return total


def fit(fitted: Sequence[Observation], held_back: Sequence[Observation]) -> Fit:
    """The constants that tell `fitted` best, judged by `held_back`.

    Raises ValueError where there is nothing to fit, or to judge by.
    """
    if len(fitted) < len(COLUMNS) or not held_back:
        raise ValueError(
            f"{len(fitted)} observations, {len(held_back)} held back: too few to fit {len(COLUMNS)} constants"
        )
    best = _solve(fitted, 0.0)
    for bound in _BOUNDS:
        candidate = _solve(fitted, bound)
        if candidate[2] < WORTH * best[2]:
            best = candidate
    simulation, overhead, _ = best
    errors = _errors(simulation, overhead, held_back)
    kinds = sorted({each.kind for each in held_back})
    by_kind = {}
    for kind in kinds:
        own = errors[[each.kind == kind for each in held_back]]
        by_kind[kind] = (len(own), float(np.median(own)), float(np.quantile(own, 0.9)))
    median, p90 = float(np.median(errors)), float(np.quantile(errors, 0.9))
    return Fit(simulation, overhead, len(fitted), len(held_back), median, p90, by_kind)


def nnls(matrix: Array, target: Array) -> Array:
    """The x >= 0 with the least |matrix @ x - target|; exact, for few columns.

    The solution is the unconstrained one on the columns where it is positive, so one of the subsets has it.
    """
    count = matrix.shape[1]
    best, least = np.zeros(count), float(target @ target)
    for size in range(1, count + 1):
        for columns in map(list, combinations(range(count), size)):
            part, _, rank, _ = np.linalg.lstsq(matrix[:, columns], target, rcond=None)
            if rank < size or part.min() < 0:
                continue
            error = target - matrix[:, columns] @ part
            square = float(error @ error)
            if square < least * (1 - 1e-9):
                least, best = square, np.zeros(count)
                best[columns] = part
    return best


def _solve(observations: Sequence[Observation], bound: float) -> tuple[Simulation, Overhead, float]:
    """Constants, overhead and the mean squared relative error, beginning with the weights bounding the
    steps of fewer than `bound` tokens; 0 means no weights."""
    bounded = [[shape.prefill + shape.decode < bound for shape in each.shapes] for each in observations]
    seconds = np.array([each.seconds for each in observations])
    for _ in range(_TURNS):
        rows = np.array([_row(each, by) for each, by in zip(observations, bounded, strict=True)])
        scaled = rows / (seconds[:, None] * 1e6)
        used = [column for column in range(len(COLUMNS)) if scaled[:, column].any()]
        solution = np.zeros(len(COLUMNS))
        # Columns of one length each: their units differ by many powers of ten.
        norms = np.linalg.norm(scaled[:, used], axis=0)
        solution[used] = nnls(scaled[:, used] / norms, np.ones(len(seconds))) / norms
        base, weights, prefill_token, sequence, prefill_context, decode_context, request, token = map(float, solution)
        overhead = Overhead(request / 1e6, token / 1e6)
        simulation = Simulation(
            step_base_us=base,
            weights_us=weights,
            prefill_token_us=prefill_token,
            sequence_us=sequence,
            prefill_context_us=prefill_context,
            decode_context_us=decode_context,
        )
        again = [[_bound(simulation, shape) for shape in each.shapes] for each in observations]
        if not solution[_WEIGHTS] or again == bounded:
            break
        bounded = again
    errors = _errors(simulation, overhead, observations)
    return simulation, overhead, float(np.mean(errors**2))


def _row(observation: Observation, bounded: Sequence[bool]) -> list[float]:
    """What each constant, in microseconds, is multiplied by; in the order of COLUMNS."""
    row = [0.0] * len(COLUMNS)
    for shape, by_weights in zip(observation.shapes, bounded, strict=True):
        row[0] += shape.steps
        if by_weights:
            row[1] += shape.steps
        else:
            row[2] += shape.steps * shape.prefill
            row[3] += shape.steps * shape.decode
        row[4] += shape.steps * shape.prefill_context / 1000
        row[5] += shape.steps * shape.decode_context / 1000
    row[6] = 1.0 if observation.through else 0.0
    row[7] = float(observation.through)
    return row


def _bound(simulation: Simulation, shape: Shape) -> bool:
    dense = shape.prefill * simulation.prefill_token_us + shape.decode * simulation.sequence_us
    return simulation.weights_us > dense


def _errors(simulation: Simulation, overhead: Overhead, observations: Sequence[Observation]) -> Array:
    """Relative, without sign."""
    predicted = [predict(simulation, overhead, each) for each in observations]
    return np.array([abs(p - each.seconds) / each.seconds for p, each in zip(predicted, observations, strict=True)])
