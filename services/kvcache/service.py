"""headrace.kvcache.v1.KvCacheService over index, ledger and reports: proto in, proto out."""

from collections.abc import Callable, Iterable
from typing import Any

import structlog
from grpc import aio
from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc

from libs.clock import Clock
from libs.errors import Overloaded, RequestInvalid, Violation
from libs.kvcache.values import Answer, BlockEvent, Question
from libs.kvcache.wire import (
    answer_to_proto,
    cache_from_proto,
    event_from_proto,
    question_from_proto,
    reservation_from_proto,
)
from libs.rpc.paging import page
from libs.telemetry import names
from libs.telemetry.tracing import Tracing
from services.kvcache.conversation import Conversation
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import UNPLACED, Held, Ledger
from services.kvcache.reports import Reports, Verdict

log = structlog.get_logger()

MAX_MATCHES = 16
"""Executors in one answer."""
MAX_ANSWERS = 4096
"""Answers in one message, and answers that wait before no further question is read."""
MAX_BATCHERS = 1024
"""Streams of batchers; one more is refused."""

Context = aio.ServicerContext[Any, Any]


class Observer:
    """Hears what happens, for metrics. This one ignores it."""

    def lookup(self, pool: str, result: str, duration_s: float) -> None:
        """A question was answered; `result` is "hit", "miss" or "refused"."""

    def gap(self, executor: str) -> None:
        """Events were missed, and a snapshot asked for."""


class KvCacheServicer(kvcache_pb2_grpc.KvCacheServiceServicer):
    """The servicer. Leases need no timer: whatever could see that one is over looks first.

    State is lent: the caller may read it, for metrics, between calls.
    """

    def __init__(
        self,
        index: PrefixIndex,
        ledger: Ledger,
        reports: Reports,
        clock: Clock,
        tracing: Tracing,
        observer: Observer | None = None,
    ) -> None:
        self._index = index
        self._ledger = ledger
        self._reports = reports
        self._clock = clock
        self._tracing = tracing
        self._observer = observer or Observer()
        self._batchers: dict[str, object] = {}
        self._conversations: set[Conversation[Any, Any]] = set()

    def close(self) -> None:
        """Ends every standing stream: the first thing to do on shutdown. Clients come back, to whoever is
        there then."""
        for conversation in self._conversations:
            conversation.end()

    def expire(self) -> None:
        """Ends the leases that are over."""
        now = self._clock.monotonic()
        for batcher in self._ledger.expire(now):
            log.info("reservations lapsed", batcher=batcher)
        for executor, report in self._reports.expire(now):
            log.info("executor forgotten", executor=executor)
            self._index.forget(executor)
            for pool in report.pools:
                self._ledger.set_capacity(executor, pool, 0)

    def caches(self) -> list[pb.Cache]:
        """What is known of each executor's caches, by executor, then pool."""
        self.expire()
        return [
            pb.Cache(
                executor=executor,
                pool=pool,
                capacity=info.capacity,
                reserved=self._ledger.reserved(executor, pool),
                indexed=self._index.size(executor, pool),
                block_tokens=info.block_tokens,
                exactness=pb.Exactness.ValueType(info.exactness),
                live=report.stream is not None,
            )
            for executor, report in sorted(self._reports.executors.items())
            for pool, info in sorted(report.pools.items())
        ]

    async def Consult(self, _: object, context: Context) -> None:  # type: ignore[override]
        """A batcher's conversation."""
        stream = _ConsultStream(self)
        try:
            await self._converse(Conversation(context, stream.take, stream.flush))
        finally:
            stream.ended()

    async def Report(self, _: object, context: Context) -> None:  # type: ignore[override]
        """An executor's report."""
        stream = _ReportStream(self)
        try:
            await self._converse(Conversation(context, stream.take, stream.flush))
        finally:
            stream.ended()

    async def ListCaches(self, request: pb.ListCachesRequest, context: object) -> pb.ListCachesResponse:
        """A page of `caches`."""
        caches, token = page(self.caches(), request.page_size, request.page_token)
        return pb.ListCachesResponse(caches=caches, next_page_token=token)

    async def _converse(self, conversation: Conversation[Any, Any]) -> None:
        self._conversations.add(conversation)
        try:
            await conversation.run()
        finally:
            self._conversations.discard(conversation)
