"""What an operator asks, answered from the registry and from the stages behind. Only tenants with
`operator: true` get in."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog
from google.protobuf.message import Message
from grpc import aio

from headrace.kvcache.v1 import kvcache_pb2, kvcache_pb2_grpc
from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from headrace.operations.v1 import operations_pb2, operations_pb2_grpc
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.errors import NotAllowed, RequestInvalid, StageUnavailable, SwitchUnknown, Violation
from libs.lane.client import ASK_TIMEOUT_S
from libs.lane.wire import decision_to_proto
from libs.registry import keys
from libs.registry.errors import RegistryError
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from libs.rpc.call import CALL
from libs.rpc.paging import page
from services.admission.convert import request_from_proto
from services.admission.front import Front
from services.admission.policy import Tenant
from services.admission.policy_source import PolicySource

log = structlog.get_logger()

M = TypeVar("M", bound=Message)
_KINDS: Mapping[int, str] = {policy_pb2.SWITCH_KIND_MODEL: "model", policy_pb2.SWITCH_KIND_TENANT: "tenant"}


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """Serves headrace.operations.v1.OperationsService.

    Args:
        services: Processes of every stage, by "service/instance".
        placements: What placement decided, by "executor/model".
        connect: Gives the channel to an endpoint.
    """

    def __init__(
        self,
        front: Front,
        source: PolicySource,
        registry: Registry,
        services: Mirror[registry_pb2.ServiceInstance],
        placements: Mirror[registry_pb2.Placement],
        connect: Callable[[str], aio.Channel],
    ) -> None:
        self._front = front
        self._source = source
        self._registry = registry
        self._services = services
        self._placements = placements
        self._connect = connect

    async def ListModels(
        self, request: operations_pb2.ListModelsRequest, context: object
    ) -> operations_pb2.ListModelsResponse:
        """From the registry."""
        _operator()
        models, token = page(_ordered(self._source.models.items), request.page_size, request.page_token)
        return operations_pb2.ListModelsResponse(models=models, next_page_token=token)

    async def ListServices(
        self, request: operations_pb2.ListServicesRequest, context: object
    ) -> operations_pb2.ListServicesResponse:
        """From the registry."""
        _operator()
        services, token = page(_ordered(self._services.items), request.page_size, request.page_token)
        return operations_pb2.ListServicesResponse(services=services, next_page_token=token)

    async def ListExecutors(
        self, request: operations_pb2.ListExecutorsRequest, context: object
    ) -> operations_pb2.ListExecutorsResponse:
        """From the registry."""
        _operator()
        executors, token = page(_ordered(self._source.executors.items), request.page_size, request.page_token)
        return operations_pb2.ListExecutorsResponse(executors=executors, next_page_token=token)

    async def ListPlacements(
        self, request: operations_pb2.ListPlacementsRequest, context: object
    ) -> operations_pb2.ListPlacementsResponse:
        """From the registry."""
        _operator()
        placements, token = page(_ordered(self._placements.items), request.page_size, request.page_token)
        return operations_pb2.ListPlacementsResponse(placements=placements, next_page_token=token)

    async def ListTenants(
        self, request: operations_pb2.ListTenantsRequest, context: object
    ) -> operations_pb2.ListTenantsResponse:
        """From the registry, without the keys' hashes."""
        _operator()
        tenants, token = page(_ordered(self._source.tenants.items), request.page_size, request.page_token)
        response = operations_pb2.ListTenantsResponse(tenants=tenants, next_page_token=token)
        for tenant in response.tenants:
            tenant.ClearField("key_sha256")
        return response

    async def ListUsage(
        self, request: operations_pb2.ListUsageRequest, context: object
    ) -> operations_pb2.ListUsageResponse:
        """From this process's ledger."""
        _operator()
        usages = [
            operations_pb2.TenantUsage(
                tenant=name,
                requests=usage.requests,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                output_tokens=usage.output_tokens,
                running=usage.running,
            )
            for name, usage in sorted(self._front.usage.tenants.items())
        ]
        part, token = page(usages, request.page_size, request.page_token)
        return operations_pb2.ListUsageResponse(usages=part, next_page_token=token)

    async def ListSwitches(
        self, request: operations_pb2.ListSwitchesRequest, context: object
    ) -> operations_pb2.ListSwitchesResponse:
        """From the registry."""
        _operator()
        switches, token = page(_ordered(self._source.switches.items), request.page_size, request.page_token)
        return operations_pb2.ListSwitchesResponse(switches=switches, next_page_token=token)

    async def PutSwitch(
        self, request: operations_pb2.PutSwitchRequest, context: object
    ) -> operations_pb2.PutSwitchResponse:
        """Writes the switch; every process follows it in the registry."""
        operator, switch = _operator(), request.switch
        faults = (
            []
            if switch.reason.strip()
            else [Violation("switch.reason", "is required: it is told to whoever is refused")]
        )
        key = _switch_key(switch.kind, switch.name, "switch.", faults)
        switch.set_by = operator.name
        try:
            await self._registry.put_message(key, switch)
        except RegistryError as error:
            raise StageUnavailable(
                "etcd does not answer; the switch was perhaps not written", retry_after_s=1.0
            ) from error
        log.warning("switch on", kind=_KINDS[switch.kind], name=switch.name, set_by=operator.name, reason=switch.reason)
        return operations_pb2.PutSwitchResponse(switch=switch)

    async def DeleteSwitch(
        self, request: operations_pb2.DeleteSwitchRequest, context: object
    ) -> operations_pb2.DeleteSwitchResponse:
        """Deletes the switch."""
        operator = _operator()
        key = _switch_key(request.kind, request.name, "", [])
        try:
            deleted = await self._registry.delete(key)
        except RegistryError as error:
            raise StageUnavailable("etcd does not answer; the switch is perhaps still on", retry_after_s=1.0) from error
        if not deleted:
            raise SwitchUnknown(f"no switch is on for {_KINDS[request.kind]} {request.name}")
        log.warning("switch off", kind=_KINDS[request.kind], name=request.name, by=operator.name)
        return operations_pb2.DeleteSwitchResponse()

    async def ListQueues(
        self, request: operations_pb2.ListQueuesRequest, context: object
    ) -> operations_pb2.ListQueuesResponse:
        """Asks every batcher; one that does not answer is left out."""
        _operator()

        async def ask(endpoint: str) -> Sequence[lane_pb2.Queue]:
            stub: lane_pb2_grpc.LaneServiceAsyncStub = lane_pb2_grpc.LaneServiceStub(self._connect(endpoint))
            response = await stub.ListQueues(lane_pb2.ListQueuesRequest(page_size=1000), timeout=ASK_TIMEOUT_S)
            return response.queues

        queues = await self._ask_all("batcher", ask)
        queues.sort(key=lambda queue: (queue.instance, queue.pool, queue.tier))
        part, token = page(queues, request.page_size, request.page_token)
        return operations_pb2.ListQueuesResponse(queues=part, next_page_token=token)

    async def ListCaches(
        self, request: operations_pb2.ListCachesRequest, context: object
    ) -> operations_pb2.ListCachesResponse:
        """Asks every KV-cache manager; one that does not answer is left out."""
        _operator()

        async def ask(endpoint: str) -> Sequence[kvcache_pb2.Cache]:
            stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(
                self._connect(endpoint)
            )
            response = await stub.ListCaches(kvcache_pb2.ListCachesRequest(page_size=1000), timeout=ASK_TIMEOUT_S)
            return response.caches

        caches = await self._ask_all("kvcache", ask)
        caches.sort(key=lambda cache: (cache.executor, cache.pool))
        part, token = page(caches, request.page_size, request.page_token)
        return operations_pb2.ListCachesResponse(caches=part, next_page_token=token)

    async def Explain(self, request: operations_pb2.ExplainRequest, context: object) -> operations_pb2.ExplainResponse:
        """Each stage's own word, in order."""
        tenant: Tenant | None = _operator()
        if request.tenant:
            tenant = next((t for t in self._front.policy().tenants.values() if t.name == request.tenant), None)
            if tenant is None:
                raise RequestInvalid.of([Violation("tenant", f"nobody is called {request.tenant!r}")])
        assert tenant is not None
        parsed = request_from_proto(request.request, traceparent="", call_deadline=None)
        try:
            decisions = await self._front.explain(parsed, tenant)
        except aio.AioRpcError as error:
            raise StageUnavailable("a stage behind did not answer", retry_after_s=1.0) from error
        return operations_pb2.ExplainResponse(decisions=map(decision_to_proto, decisions))

    async def _ask_all(self, service: str, ask: Callable[[str], Awaitable[Sequence[M]]]) -> list[M]:
        endpoints = [i.endpoint for i in self._services.items.values() if i.service == service]
        answers = await asyncio.gather(*(ask(endpoint) for endpoint in endpoints), return_exceptions=True)
        for endpoint, answer in zip(endpoints, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("no answer", service=service, endpoint=endpoint, error=str(answer))
        return [item for answer in answers if not isinstance(answer, BaseException) for item in answer]


def _operator() -> Tenant:
    """The caller, if it may operate the mesh."""
    tenant: Tenant = CALL.get().identity
    if not tenant.operator:
        raise NotAllowed(f"tenant {tenant.name} is not an operator")
    return tenant


def _ordered(items: Mapping[str, M]) -> Sequence[M]:
    return [items[key] for key in sorted(items)]


def _switch_key(kind: int, name: str, path: str, faults: list[Violation]) -> str:
    """The switch's key. Raises RequestInvalid with `faults` and what is wrong here."""
    if kind not in _KINDS:
        faults.append(Violation(f"{path}kind", "is required: SWITCH_KIND_MODEL or SWITCH_KIND_TENANT"))
    key = ""
    try:
        key = keys.switch(_KINDS.get(kind, "model"), name)
    except ValueError as error:
        faults.append(Violation(f"{path}name", str(error)))
    if faults:
        raise RequestInvalid.of(faults)
    return key
