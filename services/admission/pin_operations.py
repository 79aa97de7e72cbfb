"""The operations API's calls about pinned prefixes. Only tenants with `operator: true` get in."""

from headrace.operations.v1 import operations_pb2
from libs.rpc.paging import page
from services.admission.calls import operator, written
from services.admission.pin_writer import PinWriter


class PinOperations:
    """A part of OperationsService."""

    def __init__(self, pins: PinWriter) -> None:
        self._pins = pins

    async def PinPrefix(
        self, request: operations_pb2.PinPrefixRequest, context: object
    ) -> operations_pb2.PinPrefixResponse:
        """Written if all is as it was read."""
        caller = operator()
        with written("the prefix was perhaps not pinned"):
            return operations_pb2.PinPrefixResponse(pin=await self._pins.pin(request, caller.name))

    async def UnpinPrefix(
        self, request: operations_pb2.UnpinPrefixRequest, context: object
    ) -> operations_pb2.UnpinPrefixResponse:
        """Deletes the pin; what it kept goes as all else goes."""
        caller = operator()
        with written("the prefix is perhaps still pinned"):
            await self._pins.unpin(request, caller.name)
        return operations_pb2.UnpinPrefixResponse()

    async def ListPins(
        self, request: operations_pb2.ListPinsRequest, context: object
    ) -> operations_pb2.ListPinsResponse:
        """From etcd itself: it alone knows the revisions."""
        operator()
        with written("it alone knows the pins"):
            pins, token = page(await self._pins.all(), request.page_size, request.page_token)
        return operations_pb2.ListPinsResponse(pins=pins, next_page_token=token)
