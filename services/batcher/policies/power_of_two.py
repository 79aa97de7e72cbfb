"""The better of two random executors.

Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (IEEE TPDS 12(10), 2001): of n
servers the fullest has about log log n works more than its share, not log n. Envoy's LEAST_REQUEST is this by
default (`choice_count: 2`), and SGLang's router has it (`sgl-model-gateway/src/policies/power_of_two.rs`).

The same: two different ones are drawn, and the one with fewer works is chosen; of equals the first drawn, which is
a random one.
Different: SGLang compares the tokens that its workers report, when all of them report; here works are counted, as
in the paper and in Envoy. Envoy may draw the same host twice, which is a choice of one.
"""

from collections.abc import Sequence

from services.batcher.policies.policy import Asked, Choice, Pick
from services.batcher.policies.ties import NONE_OPEN
from services.batcher.seat import Seat


class PowerOfTwo:
    """See the module."""

    name = "power_of_two"
    late = False

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        candidates = [seat for seat in seats if seat.open]
        count = len(candidates)
        if count < 2:
            return Choice(candidates[0], "the only open executor") if candidates else NONE_OPEN
        at = pick(count)
        seat, other = candidates[at], candidates[(at + 1 + pick(count - 1)) % count]
        if other.works < seat.works:
            seat, other = other, seat
        return Choice(seat, f"{seat.works} works, {other.executor} has {other.works}: two of {count} drawn")
