"""What an operator asks, answered from the registry and from the stages behind. Only tenants with
`operator: true` get in."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
from google.protobuf.message import Message
from grpc import aio

from headrace.operations.v1 import operations_pb2, operations_pb2_grpc
from headrace.registry.v1 import registry_pb2
from libs.clock import Clock
from libs.errors import RequestInvalid, StageUnavailable, Violation
from libs.lane.wire import decision_to_proto
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from libs.rpc.context import Context
from libs.rpc.paging import page
from services.admission.audit_operations import AuditOperations
from services.admission.calls import operator, written
from services.admission.catalogue_writer import CatalogueWriter
from services.admission.convert import request_from_proto
from services.admission.desks import Desks
from services.admission.front import Front
from services.admission.ladder_operations import LadderOperations
from services.admission.pin_operations import PinOperations
from services.admission.pin_writer import PinWriter
from services.admission.placement_news import news, snapshot
from services.admission.placement_view import PlacementView
from services.admission.policy import Tenant
from services.admission.policy_operations import PolicyOperations
from services.admission.policy_source import PolicySource
from services.admission.policy_writer import PolicyWriter
from services.admission.router_operations import RouterOperations
from services.admission.stages import Stages
from services.admission.switch_operations import SwitchOperations
from services.admission.usage import Usage

log = structlog.get_logger()

SETTLE_S = 0.1
"""Changes that come together are told together."""
REST = 10
"""Nor does a watch look again before this many times as long as the last look took: it shares a loop with requests."""
HEARTBEAT_S = 5.0
"""A watch without news says so: else nobody on the way could tell it from a dead one."""


@dataclass(frozen=True, slots=True)
class Writers:
    """Write what operators may change."""

    catalogue: CatalogueWriter
    pins: PinWriter
    policies: PolicyWriter


M = TypeVar("M", bound=Message)


class OperationsServicer(
    PinOperations,
    SwitchOperations,
    PolicyOperations,
    LadderOperations,
    RouterOperations,
    AuditOperations,
    operations_pb2_grpc.OperationsServiceServicer,
):
    """Serves headrace.operations.v1.OperationsService.

    Args:
        services: Processes of every stage, by "service/instance".
        view: What is known of models and copies.
        writers: Write what operators may change.
        stages: Asks the processes of the stages behind.
        desks: What requests pass here.
        connect: Gives the channel to an endpoint.
    """

    def __init__(
        self,
        front: Front,
        source: PolicySource,
        registry: Registry,
        services: Mirror[registry_pb2.ServiceInstance],
        view: PlacementView,
        writers: Writers,
        stages: Stages,
        desks: Desks,
        connect: Callable[[str], aio.Channel],
        clock: Clock,
        instance: str,
    ) -> None:
        PinOperations.__init__(self, writers.pins)
        SwitchOperations.__init__(self, registry, source.switches)
        PolicyOperations.__init__(self, writers.policies)
        LadderOperations.__init__(self, desks.ladders, clock)
        RouterOperations.__init__(self, stages)
        AuditOperations.__init__(self, desks.audit, instance, services, connect)
        self._front = front
        self._source = source
        self._all_services = services
        self._view = view
        self._writer = writers.catalogue
        self._stages = stages
        self._limits = desks.limits
        self._time = clock

    async def ListModels(
        self, request: operations_pb2.ListModelsRequest, context: object
    ) -> operations_pb2.ListModelsResponse:
        """From the registry."""
        operator()
        models, token = page(_ordered(self._source.models.items), request.page_size, request.page_token)
        picture = self._view.picture()
        response = operations_pb2.ListModelsResponse(models=models, next_page_token=token)
        for model in models:
            status = response.statuses.add()
            status.CopyFrom(picture.models[model.name])
            status.copies.extend(copy for copy in picture.copies.values() if copy.model == (model.base or model.name))
        return response

    async def ApplyModels(
        self, request: operations_pb2.ApplyModelsRequest, context: object
    ) -> operations_pb2.ApplyModelsResponse:
        """Written as one, if all is as it was read."""
        caller = operator()
        with written("the models were perhaps not written"):
            return operations_pb2.ApplyModelsResponse(changes=await self._writer.apply(request, caller.name))

    async def DeleteModel(
        self, request: operations_pb2.DeleteModelRequest, context: object
    ) -> operations_pb2.DeleteModelResponse:
        """Deletes the model; placement withdraws its copies."""
        caller = operator()
        with written("the model was perhaps not deleted"):
            change = await self._writer.delete(request.name, caller.name, force=request.force)
        return operations_pb2.DeleteModelResponse(change=change)

    async def ListServices(
        self, request: operations_pb2.ListServicesRequest, context: object
    ) -> operations_pb2.ListServicesResponse:
        """From the registry."""
        operator()
        services, token = page(_ordered(self._all_services.items), request.page_size, request.page_token)
        return operations_pb2.ListServicesResponse(services=services, next_page_token=token)

    async def ListExecutors(
        self, request: operations_pb2.ListExecutorsRequest, context: object
    ) -> operations_pb2.ListExecutorsResponse:
        """From the registry."""
        operator()
        executors, token = page(_ordered(self._source.executors.items), request.page_size, request.page_token)
        return operations_pb2.ListExecutorsResponse(executors=executors, next_page_token=token)

    async def ListPlacements(
        self, request: operations_pb2.ListPlacementsRequest, context: object
    ) -> operations_pb2.ListPlacementsResponse:
        """From the registry."""
        operator()
        picture = self._view.picture()
        found, token = page(list(picture.copies.items()), request.page_size, request.page_token)
        return operations_pb2.ListPlacementsResponse(
            placements=[placed for key, _ in found if (placed := self._view.placement(key)) is not None],
            next_page_token=token,
            copies=[copy for _, copy in found],
            unplaced=picture.unplaced.values(),
            executors=picture.executors.values(),
        )

    async def WatchPlacements(  # type: ignore[override]
        self, request: operations_pb2.WatchPlacementsRequest, context: Context
    ) -> None:
        """The registry's changes as they come; what the caller is too slow for is merged."""
        operator()
        clock, took = asyncio.get_running_loop().time, 0.0
        with self._view.watch() as changed:
            told = self._view.picture(request.models)
            for part in snapshot(told):
                await context.write(part)
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await changed.wait()
                except TimeoutError:
                    await context.write(operations_pb2.WatchPlacementsResponse(stale_since=told.stale_since))
                await asyncio.sleep(max(SETTLE_S, took * REST))
                operator()
                changed.clear()
                began = clock()
                now = self._view.picture(request.models)
                message, told = news(told, now), now
                took = clock() - began
                if message is not None:
                    await context.write(message)

    async def ListTenants(
        self, request: operations_pb2.ListTenantsRequest, context: object
    ) -> operations_pb2.ListTenantsResponse:
        """From the registry, without the keys' hashes."""
        operator()
        tenants, token = page(_ordered(self._source.tenants.items), request.page_size, request.page_token)
        response = operations_pb2.ListTenantsResponse(tenants=tenants, next_page_token=token)
        for tenant in response.tenants:
            tenant.ClearField("key_sha256")
        return response

    async def ListUsage(
        self, request: operations_pb2.ListUsageRequest, context: object
    ) -> operations_pb2.ListUsageResponse:
        """From this process's ledger."""
        operator()
        usages = [self._usage(name, usage) for name, usage in sorted(self._front.usage.tenants.items())]
        part, token = page(usages, request.page_size, request.page_token)
        return operations_pb2.ListUsageResponse(usages=part, next_page_token=token)

    async def ListQueues(
        self, request: operations_pb2.ListQueuesRequest, context: object
    ) -> operations_pb2.ListQueuesResponse:
        """Asks every batcher; one that does not answer is left out."""
        operator()
        queues = await self._stages.queues()
        part, token = page(queues, request.page_size, request.page_token)
        return operations_pb2.ListQueuesResponse(queues=part, next_page_token=token)

    async def ListCaches(
        self, request: operations_pb2.ListCachesRequest, context: object
    ) -> operations_pb2.ListCachesResponse:
        """Asks every KV-cache manager; one that does not answer is left out."""
        operator()
        caches = await self._stages.caches()
        part, token = page(caches, request.page_size, request.page_token)
        return operations_pb2.ListCachesResponse(caches=part, next_page_token=token)

    async def Explain(self, request: operations_pb2.ExplainRequest, context: object) -> operations_pb2.ExplainResponse:
        """Each stage's own word, in order."""
        tenant: Tenant | None = operator()
        if request.tenant:
            tenant = self._front.policy().by_name.get(request.tenant)
            if tenant is None:
                raise RequestInvalid.of([Violation("tenant", f"nobody is called {request.tenant!r}")])
        assert tenant is not None
        parsed = request_from_proto(request.request, traceparent="", call_deadline=None)
        try:
            decisions = await self._front.explain(parsed, tenant)
        except aio.AioRpcError as error:
            raise StageUnavailable("a stage behind did not answer", retry_after_s=1.0) from error
        return operations_pb2.ExplainResponse(decisions=map(decision_to_proto, decisions))

    def _usage(self, tenant: str, usage: Usage) -> operations_pb2.TenantUsage:
        lately = self._limits.stats(tenant, self._time.monotonic())
        return operations_pb2.TenantUsage(
            tenant=tenant,
            requests=usage.requests,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            running=usage.running,
            refused=usage.refused,
            waiting=self._front.waiting(tenant),
            requests_per_s=lately.requests_per_s,
            tokens_per_min=lately.tokens_per_min,
            tokens_per_min_allowed=lately.tokens_per_min_allowed,
        )


def _ordered(items: Mapping[str, M]) -> Sequence[M]:
    return [items[key] for key in sorted(items)]
