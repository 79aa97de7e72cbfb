"""What a mesh beyond the measured ones would cost, from a fit of those that were. Pure. A model, no measurement.

    cores = idle + per executor · executors + per step · steps/s + per token · tokens/s + per request · requests/s

for each service, by least squares of relative errors, no coefficient below 0 (C. L. Lawson and R. J. Hanson, "Solving
Least Squares Problems", 1974, chapter 23; here by leaving out the most negative until none is). Steps are those of all
executors together: each is a message from an executor to a batcher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NAMES = ("idle", "executor", "step", "token", "request")


@dataclass(frozen=True, slots=True)
class Load:
    """What a mesh has to do. Rates are per second, over the whole mesh."""

    executors: float
    steps: float
    tokens: float
    requests: float

    @property
    def row(self) -> tuple[float, ...]:
        """One value for each of NAMES."""
        return 1.0, self.executors, self.steps, self.tokens, self.requests

    @classmethod
    def of(cls, executors: int, flight: int, step_s: float, answer: int) -> "Load":
        """So many executors with so many requests in flight each, at an even pace."""
        tokens = executors * flight / step_s
        return cls(executors, executors / step_s, tokens, tokens / answer)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one service: µs of CPU for one of each, per second for the first two."""

    us: Mapping[str, float]
    error: float
    """Median of the relative errors of the measured points."""

    def cores(self, load: Load) -> float:
        """What this load would take."""
        return sum(self.us[name] * many for name, many in zip(NAMES, load.row, strict=True)) / 1e6


def fit(measured: Sequence[tuple[Load, float]]) -> Cost:
    """From loads and the cores that they took. Raises ValueError when there are fewer than coefficients."""
    if len(measured) < len(NAMES):
        raise ValueError(f"{len(measured)} points for {len(NAMES)} coefficients")
    cores = np.array([cores for _, cores in measured])
    rows = np.array([load.row for load, _ in measured]) / cores[:, None]
    kept = [*range(len(NAMES))]
    while True:
        scale = np.maximum(np.abs(rows[:, kept]).max(axis=0), 1e-12)  # rates differ by orders of magnitude
        found = np.linalg.lstsq(rows[:, kept] / scale, np.ones(len(rows)), rcond=None)[0] / scale
        if (found >= 0).all():
            break
        kept.pop(int(np.argmin(found * scale)))
    us = dict.fromkeys(NAMES, 0.0) | {NAMES[at]: float(value) * 1e6 for at, value in zip(kept, found, strict=True)}
    wrong = np.abs(rows[:, kept] @ found - 1)
    return Cost(us, float(np.median(wrong)))
