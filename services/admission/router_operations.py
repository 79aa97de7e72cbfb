"""The operations API's calls about routers. Only tenants with `operator: true` get in."""

from headrace.operations.v1 import operations_pb2
from services.admission.calls import operator
from services.admission.stages import Stages


class RouterOperations:
    """A part of OperationsService."""

    def __init__(self, stages: Stages) -> None:
        self._routers = stages

    async def ListBreakers(
        self, request: operations_pb2.ListBreakersRequest, context: object
    ) -> operations_pb2.ListBreakersResponse:
        """Asks every router; one that does not answer is left out."""
        operator()
        return operations_pb2.ListBreakersResponse(breakers=await self._routers.breakers())
