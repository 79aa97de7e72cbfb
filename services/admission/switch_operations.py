"""The operations API's calls about kill switches. Only tenants with `operator: true` get in."""

import structlog

from headrace.operations.v1 import operations_pb2
from headrace.policy.v1 import policy_pb2
from libs.errors import RequestInvalid, SwitchUnknown, Violation
from libs.policy import switch_rules
from libs.registry import keys
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from libs.rpc.paging import page
from services.admission.calls import operator, written

log = structlog.get_logger()


class SwitchOperations:
    """A part of OperationsService."""

    def __init__(self, registry: Registry, switches: Mirror[policy_pb2.Switch]) -> None:
        self._registry = registry
        self._switches = switches

    async def ListSwitches(
        self, request: operations_pb2.ListSwitchesRequest, context: object
    ) -> operations_pb2.ListSwitchesResponse:
        """From the registry."""
        operator()
        items = self._switches.items
        switches, token = page([items[key] for key in sorted(items)], request.page_size, request.page_token)
        return operations_pb2.ListSwitchesResponse(switches=switches, next_page_token=token)

    async def PutSwitch(
        self, request: operations_pb2.PutSwitchRequest, context: object
    ) -> operations_pb2.PutSwitchResponse:
        """Writes the switch; every process follows it in the registry."""
        caller, switch = operator(), request.switch
        if faults := [Violation(f"switch.{fault.path}", fault.text) for fault in switch_rules.entry(switch)]:
            raise RequestInvalid.of(faults)
        switch.set_by, kind = caller.name, switch_rules.KINDS[switch.kind]
        with written("the switch was perhaps not written"):
            await self._registry.put_message(keys.switch(kind, switch.name), switch)
        log.warning("switch on", kind=kind, name=switch.name, set_by=caller.name, reason=switch.reason)
        return operations_pb2.PutSwitchResponse(switch=switch)

    async def DeleteSwitch(
        self, request: operations_pb2.DeleteSwitchRequest, context: object
    ) -> operations_pb2.DeleteSwitchResponse:
        """Deletes the switch."""
        caller = operator()
        if faults := [Violation(fault.path, fault.text) for fault in switch_rules.which(request.kind, request.name)]:
            raise RequestInvalid.of(faults)
        kind = switch_rules.KINDS[request.kind]
        with written("the switch is perhaps still on"):
            deleted = await self._registry.delete(keys.switch(kind, request.name))
        if not deleted:
            raise SwitchUnknown(f"no switch is on for {kind} {request.name}")
        log.warning("switch off", kind=kind, name=request.name, by=caller.name)
        return operations_pb2.DeleteSwitchResponse()
