"""headrace.kvcache.v1.KvCacheService: proto in, proto out, over a Memory that decides."""

from typing import Any

from grpc import aio

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs.clock import Clock
from libs.rpc.paging import page
from libs.telemetry.tracing import Tracing
from services.kvcache.consulting import Consulting
from services.kvcache.conversation import Conversation, Turns
from services.kvcache.memory import CacheView, Memory
from services.kvcache.reporting import TURN_BLOCKS, Reporting
from services.kvcache.upkeep import Observer, Upkeep

Context = aio.ServicerContext[Any, Any]


class KvCacheServicer(kvcache_pb2_grpc.KvCacheServiceServicer):
    """The servicer. Somebody must call `upkeep.turn` each second."""

    def __init__(self, memory: Memory, clock: Clock, tracing: Tracing, observer: Observer | None = None) -> None:
        self.upkeep = Upkeep(memory, clock, observer or Observer())
        self._memory = memory
        self._clock = clock
        self._tracing = tracing
        self._turns = Turns(TURN_BLOCKS)
        self._conversations: set[Conversation[Any, Any]] = set()

    def close(self) -> None:
        """Ends every standing stream: for shutdown. Their clients come back, to whoever is there then."""
        for conversation in self._conversations:
            conversation.end()

    async def Consult(self, _: object, context: Context) -> None:  # type: ignore[override]
        """A batcher's conversation."""
        stream = Consulting(self.upkeep, self._clock, self._tracing)
        try:
            await self._converse(Conversation(context, stream.take, stream.flush))
        finally:
            stream.ended()

    async def Report(self, _: object, context: Context) -> None:  # type: ignore[override]
        """An executor's report."""
        stream = Reporting(context, self.upkeep, self._clock, self._turns)
        try:
            await self._converse(stream.conversation)
        finally:
            stream.ended()

    async def ListCaches(self, request: pb.ListCachesRequest, context: object) -> pb.ListCachesResponse:
        """What is known of each executor's caches."""
        self.upkeep.expire()
        caches, token = page(self._memory.caches(), request.page_size, request.page_token)
        return pb.ListCachesResponse(caches=map(_cache_to_proto, caches), next_page_token=token)

    async def _converse(self, conversation: Conversation[Any, Any]) -> None:
        self._conversations.add(conversation)
        try:
            await conversation.run()
        finally:
            self._conversations.discard(conversation)


def _cache_to_proto(view: CacheView) -> pb.Cache:
    return pb.Cache(
        executor=view.executor,
        pool=view.info.pool,
        capacity=view.info.capacity,
        reserved=view.reserved,
        indexed=view.indexed,
        block_tokens=view.info.block_tokens,
        exactness=pb.Exactness.ValueType(view.info.exactness),
        live=view.live,
        trusted=view.trusted,
        accuracy=view.accuracy,
    )
