"""Each executor in turn.

Source: the oldest rule there is; SGLang's router (`sgl-model-gateway/src/policies/round_robin.rs`) and NVIDIA
Dynamo (`--router-mode round-robin`) have it.

The same: one after the other, whatever is on them.
Different: theirs is a counter modulo the number of healthy workers, so that an executor that comes or goes makes
the turn jump. Here the turn goes by name from the last one chosen. It starts at a random one, so that several
batchers do not walk in step.
"""

from collections.abc import Sequence

from services.batcher.policies.policy import Asked, Choice, Pick
from services.batcher.policies.ties import NONE_OPEN
from services.batcher.seat import Seat


class RoundRobin:
    """See the module."""

    name = "round_robin"
    late = False

    def __init__(self) -> None:
        self._last: str | None = None

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        candidates = [seat for seat in seats if seat.open]
        if not candidates:
            return NONE_OPEN
        last, of = self._last, f"{len(candidates)} open executors"
        if last is None:
            seat, reason = candidates[pick(len(candidates))], f"the turn begins, at random among {of}"
        else:
            later = [seat for seat in candidates if seat.executor > last]
            seat, reason = min(later or candidates, key=_name), f"next in turn after {last}, among {of}"
        self._last = seat.executor
        return Choice(seat, reason)


def _name(seat: Seat) -> str:
    return seat.executor
