"""The executor with the fewest works.

Source: Envoy's LEAST_REQUEST with `selection_method: FULL_SCAN`
(`envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto`), and NVIDIA Dynamo's
`--router-mode least-loaded`.

The same: requests in flight are counted, long or short, those that the engine still queues among them.
Different: Envoy's proxies each count their own requests, and hosts can have weights. A batcher counts all works that
it has placed, and executors of one pool weigh the same. Equals are drawn at random, as Envoy does it.
"""

from collections.abc import Sequence

from services.batcher.policies.policy import Asked, Choice, Pick
from services.batcher.policies.ties import NONE_OPEN, among, draw, fewest_works
from services.batcher.seat import Seat


class LeastRequests:
    """See the module."""

    name = "least_requests"
    late = False

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        best = fewest_works(seats)
        if not best:
            return NONE_OPEN
        seat = draw(best, pick)
        return Choice(seat, f"fewest works, {seat.works}{among(best)}")
