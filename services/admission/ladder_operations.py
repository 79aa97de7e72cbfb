"""The operations API's call about degradation ladders. Only tenants with `operator: true` get in."""

from datetime import UTC, datetime

from headrace.operations.v1 import operations_pb2
from libs.clock import Clock
from services.admission.calls import operator
from services.admission.ladder import Ladders, LadderState


class LadderOperations:
    """A part of OperationsService."""

    def __init__(self, ladders: Ladders, clock: Clock) -> None:
        self._ladders = ladders
        self._clock = clock

    async def ListDegradations(
        self, request: operations_pb2.ListDegradationsRequest, context: object
    ) -> operations_pb2.ListDegradationsResponse:
        """As this process has them."""
        operator()
        ago = self._clock.now() - self._clock.monotonic()
        ladders = [_message(state, ago) for state in self._ladders.states()]
        return operations_pb2.ListDegradationsResponse(ladders=ladders)


def _message(state: LadderState, ago: float) -> operations_pb2.LadderState:
    """`ago` turns monotonic seconds into Unix seconds."""
    message = operations_pb2.LadderState(
        model=state.model,
        tier=state.tier.value,  # type: ignore[arg-type]
        level=state.level,
        rungs=state.rungs,
        saturation=state.seen.saturation,
        wait=state.seen.wait,
        blocks=state.seen.blocks,
        refused=state.seen.refused,
    )
    message.since.FromDatetime(datetime.fromtimestamp(state.since + ago, UTC))
    return message
