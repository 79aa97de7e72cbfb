"""How evenly tenants were served while they competed. Pure.

Service is what the batcher counts: a prompt token is 1, a token of the answer 2, over the tenant's weight (Sheng et
al., "Fairness in Serving Large Language Models", OSDI 24). A prompt counts while it is computed, an answer evenly
from its first token to its last. A tenant is backlogged while a request of its waits. Evenness is Jain's index (Jain,
Chiu and Hawe, 1984): (Σx)² / (n Σx²), 1 when all have the same, 1/n when one has all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

OUTPUT_WEIGHT = 2.0
MOST_WINDOWS = 2_000
BACKLOGGED = 0.9
"""Share of a window in which a request waits, from which on the tenant counts as backlogged in it."""


@dataclass(frozen=True, slots=True)
class Use:
    """A tenant's service and its waiting, as stretches of time: rows of (from, to, amount) and of (from, to)."""

    service: Array
    waiting: Array


@dataclass(frozen=True, slots=True)
class Fairness:
    """Jain's index where tenants competed, and where they may not have."""

    windows: int
    """Windows in which at least two tenants were backlogged; without one, nothing is known of the first two."""
    mean: float | None
    """Of these windows' indices, among the backlogged tenants."""
    backlogged: float | None
    """Of the service added up over the windows in which all tenants were backlogged."""
    whole: float
    """Of all service. Below 1 wherever tenants ask for different amounts, however fairly they are served."""


def jain(values: Sequence[float]) -> float:
    """Jain's index; 1 for no values and for zeros, which are even."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def edges(start: float, end: float, window_s: float) -> Array:
    """The borders of whole windows between two times, at most MOST_WINDOWS of them: longer ones if it must be."""
    count = int((end - start) / window_s + 1e-9)
    if count > MOST_WINDOWS:
        count, window_s = MOST_WINDOWS, (end - start) / MOST_WINDOWS
    borders: Array = np.linspace(start, start + count * window_s, count + 1)
    return borders


def served(stretches: Array, borders: Array) -> Array:
    """What was served in each window of stretches (from, to, amount); each spreads its amount evenly."""
    if not len(stretches):
        return np.zeros(max(len(borders) - 1, 0))
    begin, end, amount = stretches.T
    length = np.maximum(end - begin, 1e-9)
    until = np.array([(amount * np.clip((border - begin) / length, 0.0, 1.0)).sum() for border in borders])
    return np.diff(until)


def covered(stretches: Array, borders: Array) -> Array:
    """The share of each window that the stretches (from, to) cover together."""
    if not len(stretches):
        return np.zeros(max(len(borders) - 1, 0))
    times, totals = [float(min(borders[0], stretches[:, 0].min()))], [0.0]
    for begin, end in stretches[np.argsort(stretches[:, 0])]:
        begin = max(float(begin), times[-1])
        if end > begin:
            times += [begin, float(end)]
            totals += [totals[-1], totals[-1] + float(end) - begin]
    gained: Array = np.diff(np.interp(borders, times, totals))
    return gained / np.diff(borders)


def judge(uses: Mapping[str, Use], weights: Mapping[str, float], borders: Array) -> Fairness:
    """How fair the service of each tenant was in the windows between the borders."""
    names = sorted(uses)
    if not names or len(borders) < 2:
        return Fairness(0, None, None, 1.0)
    service = np.array([served(uses[name].service, borders) / weights[name] for name in names])
    backlogged = np.array([covered(uses[name].waiting, borders) >= BACKLOGGED for name in names])
    contested = np.flatnonzero(backlogged.sum(axis=0) >= 2)
    indices = [jain(service[backlogged[:, window], window].tolist()) for window in contested]
    everyone = backlogged.all(axis=0) if len(names) > 1 else np.zeros(len(borders) - 1, bool)
    return Fairness(
        windows=len(indices),
        mean=float(np.mean(indices)) if indices else None,
        backlogged=jain(service[:, everyone].sum(axis=1).tolist()) if everyone.any() else None,
        whole=jain(service.sum(axis=1).tolist()),
    )
