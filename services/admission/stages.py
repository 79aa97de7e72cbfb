"""Asks every process of a stage what only it knows."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from google.protobuf.message import Message
from grpc import aio

from headrace.kvcache.v1 import kvcache_pb2, kvcache_pb2_grpc
from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from headrace.registry.v1 import registry_pb2
from libs.lane.client import ASK_TIMEOUT_S
from libs.registry.mirror import Mirror

log = structlog.get_logger()

M = TypeVar("M", bound=Message)
MOST = 1000
"""Entries that one process is asked for."""


class Stages:
    """One that does not answer is left out, and logged.

    Args:
        services: Processes of every stage, by "service/instance".
        connect: Gives the channel to an endpoint.
    """

    def __init__(self, services: Mirror[registry_pb2.ServiceInstance], connect: Callable[[str], aio.Channel]) -> None:
        self._services = services
        self._connect = connect

    async def queues(self) -> list[lane_pb2.Queue]:
        """Of every batcher, by instance, pool and tier."""

        async def ask(endpoint: str) -> Sequence[lane_pb2.Queue]:
            stub: lane_pb2_grpc.StageServiceAsyncStub = lane_pb2_grpc.StageServiceStub(self._connect(endpoint))
            return (await stub.ListQueues(lane_pb2.ListQueuesRequest(page_size=MOST), timeout=ASK_TIMEOUT_S)).queues

        queues = await self._ask_all("batcher", ask)
        return sorted(queues, key=lambda queue: (queue.instance, queue.pool, queue.tier))

    async def breakers(self) -> list[lane_pb2.BreakerState]:
        """Of every router, by instance and pool."""

        async def ask(endpoint: str) -> Sequence[lane_pb2.BreakerState]:
            stub: lane_pb2_grpc.StageServiceAsyncStub = lane_pb2_grpc.StageServiceStub(self._connect(endpoint))
            return (await stub.ListBreakers(lane_pb2.ListBreakersRequest(), timeout=ASK_TIMEOUT_S)).breakers

        breakers = await self._ask_all("router", ask)
        return sorted(breakers, key=lambda breaker: (breaker.instance, breaker.pool))

    async def caches(self) -> list[kvcache_pb2.Cache]:
        """Of every KV-cache manager, by executor and pool."""

        async def ask(endpoint: str) -> Sequence[kvcache_pb2.Cache]:
            stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(
                self._connect(endpoint)
            )
            request = kvcache_pb2.ListCachesRequest(page_size=MOST)
            return (await stub.ListCaches(request, timeout=ASK_TIMEOUT_S)).caches

        return sorted(await self._ask_all("kvcache", ask), key=lambda cache: (cache.executor, cache.pool))

    async def _ask_all(self, service: str, ask: Callable[[str], Awaitable[Sequence[M]]]) -> list[M]:
        endpoints = [i.endpoint for i in self._services.items.values() if i.service == service]
        answers = await asyncio.gather(*(ask(endpoint) for endpoint in endpoints), return_exceptions=True)
        for endpoint, answer in zip(endpoints, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("no answer", service=service, endpoint=endpoint, error=str(answer))
        return [item for answer in answers if not isinstance(answer, BaseException) for item in answer]
