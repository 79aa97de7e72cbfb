"""What is asked of each model, over all batchers and over time. Pure.

A batcher says what it sees now, and what it has seen since it started. When it vanishes its queue vanishes too,
but not the memory of when a model was last asked for.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.placement.values import Load

RATE_S = 30.0
"""Requests per second are averaged over about this long."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one batcher says of one model."""

    requests: int = 0
    """Since the batcher started."""
    running: int = 0
    waiting: int = 0
    oldest_waiting_s: float = 0.0
    last_request: float = 0.0


@dataclass(slots=True)
class _History:
    last_request: float = 0.0
    rate: float = 0.0
    counted: dict[str, int] = field(default_factory=dict)
    peaks: deque[tuple[float, int]] = field(default_factory=deque)
    """(time, works), newest last; works fall, so the first is the most (a monotonic queue)."""


class Demand:
    """Remembers what was asked of the models of the catalogue; bounded by them and by the batchers.

    Args:
        now: When the memory begins: a model of which nothing is known counts as asked for then, so that a new
            leader unloads nothing just because it has forgotten.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._seen = now
        self._models: dict[str, _History] = {}

    def loads(
        self, asked: Mapping[str, Mapping[str, Asked]], idle_s: Mapping[str, float], now: float
    ) -> dict[str, Load]:
        """Takes in what the batchers say now.

        Args:
            asked: By batcher, then model.
            idle_s: By model of the catalogue: how long its peak counts. Others are forgotten.
        """
        elapsed_s, self._seen = max(now - self._seen, 0.0), now
        self._models = {model: self._models.get(model) or _History(self._began) for model in idle_s}
        return {model: self._load(model, history, asked, idle_s[model], now, elapsed_s)
                for model, history in self._models.items()}  # fmt: skip

    def _load(
        self,
        model: str,
        history: _History,
        asked: Mapping[str, Mapping[str, Asked]],
        idle_s: float,
        now: float,
        elapsed_s: float,
    ) -> Load:
        said = {batcher: models[model] for batcher, models in asked.items() if model in models}
        # A counter that fell is that of a batcher that began anew.
        arrived = sum(
            one.requests - known if one.requests >= (known := history.counted.get(batcher, one.requests)) else 0
            for batcher, one in said.items()
        )
        history.counted = {batcher: one.requests for batcher, one in said.items()}
        if elapsed_s > 0:
            share = min(elapsed_s / RATE_S, 1.0)
            history.rate += (arrived / elapsed_s - history.rate) * share
        history.last_request = max([history.last_request, *(min(one.last_request, now) for one in said.values())])
        running, waiting = sum(one.running for one in said.values()), sum(one.waiting for one in said.values())
        if running or waiting:
            history.last_request = now
        while history.peaks and history.peaks[-1][1] <= running + waiting:
            history.peaks.pop()
        history.peaks.append((now, running + waiting))
        while history.peaks[0][0] < now - idle_s:
            history.peaks.popleft()
        oldest = max((one.oldest_waiting_s for one in said.values() if one.waiting), default=0.0)
        return Load(running, waiting, oldest, history.last_request, history.peaks[0][1], history.rate)
