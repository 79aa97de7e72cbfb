"""headrace.kvcache.v1: proto in, proto out, over a Memory that decides."""

from collections.abc import Mapping

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs.clock import Clock
from libs.kvcache.consult import CONSULT
from libs.kvcache.report import REPORT
from libs.rpc.paging import page
from libs.rpc.server import Service
from libs.streams.server import Handler
from libs.streams.stream import Stream
from libs.telemetry.tracing import Tracing
from services.kvcache.consulting import Consulting
from services.kvcache.conversation import Conversation, Turns
from services.kvcache.memory import CacheView, Memory
from services.kvcache.reporting import TURN_BLOCKS, Reporting
from services.kvcache.upkeep import Observer, Upkeep


class KvCacheServicer(kvcache_pb2_grpc.KvCacheServiceServicer):
    """Both services. Somebody must call `upkeep.turn` each second."""

    def __init__(self, memory: Memory, clock: Clock, tracing: Tracing, observer: Observer | None = None) -> None:
        self.upkeep = Upkeep(memory, clock, observer or Observer())
        self._memory = memory
        self._clock = clock
        self._tracing = tracing
        self._turns = Turns(TURN_BLOCKS)
        self._conversations: set[Conversation] = set()

    @property
    def service(self) -> Service:
        """What is asked in single calls."""
        return Service(
            "headrace.kvcache.v1.KvCacheService", kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server, self
        )

    @property
    def streams(self) -> Mapping[str, Handler]:
        """What stands."""
        return {CONSULT: self._consult, REPORT: self._report}

    def close(self) -> None:
        """Ends every standing stream: for shutdown. Their clients come back, to whoever is there then."""
        for conversation in list(self._conversations):
            conversation.end()

    async def _consult(self, stream: Stream) -> None:
        """A batcher's conversation."""
        consulting = Consulting(self.upkeep, self._clock, self._tracing, stream.wake)
        stream.begin()
        try:
            await self._converse(Conversation(stream, consulting.take, consulting.flush))
        finally:
            consulting.ended()

    async def _report(self, stream: Stream) -> None:
        """An executor's report."""
        reporting = Reporting(stream, self.upkeep, self._clock, self._turns)
        stream.begin()
        try:
            await self._converse(reporting.conversation)
        finally:
            reporting.ended()

    async def ListCaches(self, request: pb.ListCachesRequest, context: object) -> pb.ListCachesResponse:
        """What is known of each executor's caches."""
        self.upkeep.expire()
        caches, token = page(self._memory.caches(), request.page_size, request.page_token)
        return pb.ListCachesResponse(caches=map(_cache_to_proto, caches), next_page_token=token)

    async def _converse(self, conversation: Conversation) -> None:
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
