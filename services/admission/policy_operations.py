"""The operations API's calls about rules. Only tenants with `operator: true` get in."""

from headrace.operations.v1 import operations_pb2
from libs.rpc.paging import page
from services.admission.calls import operator, written
from services.admission.policy_writer import PolicyWriter


class PolicyOperations:
    """A part of OperationsService."""

    def __init__(self, policies: PolicyWriter) -> None:
        self._policies = policies

    async def ApplyPolicy(
        self, request: operations_pb2.ApplyPolicyRequest, context: object
    ) -> operations_pb2.ApplyPolicyResponse:
        """Written as one, judged together with what is there."""
        caller = operator()
        with written("the rules were perhaps not written"):
            return operations_pb2.ApplyPolicyResponse(changed=await self._policies.apply(request, caller.name))

    async def DeletePolicy(
        self, request: operations_pb2.DeletePolicyRequest, context: object
    ) -> operations_pb2.DeletePolicyResponse:
        """Deletes what nobody names."""
        caller = operator()
        with written("the rule is perhaps still there"):
            await self._policies.delete(request.kind, request.name, caller.name)
        return operations_pb2.DeletePolicyResponse()

    async def ListPolicies(
        self, request: operations_pb2.ListPoliciesRequest, context: object
    ) -> operations_pb2.ListPoliciesResponse:
        """From etcd itself: admission does not follow every kind."""
        operator()
        with written("it alone knows all rules"):
            objects, token = page(await self._policies.all(request.kind), request.page_size, request.page_token)
        return operations_pb2.ListPoliciesResponse(objects=objects, next_page_token=token)
