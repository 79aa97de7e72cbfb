"""headrace.kvcache.v1.KvCacheService: proto in, proto out, over a Memory that decides."""

from typing import Any

import structlog
from grpc import aio

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs.clock import Clock
from libs.errors import RequestInvalid, StageUnavailable, Violation
from libs.kvcache import wire
from libs.kvcache.values import Answer, Question
from libs.rpc.paging import page
from libs.telemetry import names
from libs.telemetry.tracing import Tracing
from services.kvcache.conversation import Conversation
from services.kvcache.memory import CacheView, Memory
from services.kvcache.reports import Verdict

log = structlog.get_logger()

MAX_ANSWERS = 4096
"""Answers in one message; also, answers that wait before no further question is read."""

Context = aio.ServicerContext[Any, Any]


class Observer:
    """Hears what happens, for metrics. This one ignores it."""

    def lookup(self, pool: str, result: str, duration_s: float) -> None:
        """A question was answered; `result` is "hit", "miss" or "refused"."""

    def gap(self, executor: str) -> None:
        """Events were missed, and a snapshot asked for."""


class KvCacheServicer(kvcache_pb2_grpc.KvCacheServiceServicer):
    """The servicer. Leases need no timer: whatever could see that one is over looks first."""

    def __init__(self, memory: Memory, clock: Clock, tracing: Tracing, observer: Observer | None = None) -> None:
        self.memory = memory
        self.clock = clock
        self.tracing = tracing
        self.observer = observer or Observer()
        self._conversations: set[Conversation[Any, Any]] = set()

    def close(self) -> None:
        """Ends every standing stream: for shutdown. Their clients come back, to whoever is there then."""
        for conversation in self._conversations:
            conversation.end()

    def expire(self) -> None:
        """Ends the leases that are over."""
        expired = self.memory.expire(self.clock.monotonic())
        for batcher in expired.batchers:
            log.info("reservations lapsed", batcher=batcher)
        for executor in expired.executors:
            log.info("executor forgotten", executor=executor)

    async def Consult(self, _: object, context: Context) -> None:  # type: ignore[override]
        """A batcher's conversation."""
        stream = _Consulting(self)
        try:
            await self._converse(Conversation(context, stream.take, stream.flush))
        finally:
            stream.ended()

    async def Report(self, _: object, context: Context) -> None:  # type: ignore[override]
        """An executor's report."""
        stream = _Reporting(self)
        try:
            await self._converse(Conversation(context, stream.take, stream.flush))
        finally:
            stream.ended()

    async def ListCaches(self, request: pb.ListCachesRequest, context: object) -> pb.ListCachesResponse:
        """What is known of each executor's caches."""
        self.expire()
        caches, token = page(self.memory.caches(), request.page_size, request.page_token)
        return pb.ListCachesResponse(caches=map(_cache_to_proto, caches), next_page_token=token)

    async def _converse(self, conversation: Conversation[Any, Any]) -> None:
        self._conversations.add(conversation)
        try:
            await conversation.run()
        finally:
            self._conversations.discard(conversation)


class _Consulting:
    """One Consult stream."""

    def __init__(self, servicer: KvCacheServicer) -> None:
        self._servicer = servicer
        self._memory = servicer.memory
        self._batcher = ""
        self._answers: list[pb.Answer] = []

    def take(self, request: pb.ConsultRequest) -> bool:
        """Claims, releases and questions, in this order: what came free can be reserved at once. (A client
        that takes a question back before it is sent does not send it.)"""
        self._servicer.expire()
        if not self._batcher:
            if not request.batcher:
                raise _missing("batcher")
            self._memory.batcher_connected(
                request.batcher, self, list(map(wire.reservation_from_proto, request.claims))
            )
            self._batcher = request.batcher
        elif not self._memory.batcher_owns(self._batcher, self):
            raise StageUnavailable(f"{self._batcher} has a newer stream")
        for release in request.releases:
            self._memory.ledger.release(self._batcher, release.id)
        for question in request.questions:
            answer = self._answer(wire.question_from_proto(question))
            self._answers.append(wire.answer_to_proto(question.id, answer))
        return len(self._answers) < MAX_ANSWERS

    def flush(self) -> pb.ConsultResponse | None:
        """The answers that wait."""
        if not self._answers:
            return None
        answers, self._answers = self._answers[:MAX_ANSWERS], self._answers[MAX_ANSWERS:]
        return pb.ConsultResponse(answers=answers)

    def ended(self) -> None:
        """The batcher's grace period begins."""
        self._memory.batcher_disconnected(self._batcher, self, self._servicer.clock.monotonic())

    def _answer(self, question: Question) -> Answer:
        servicer, start = self._servicer, self._servicer.clock.monotonic()
        span = servicer.tracing.start(names.LOOKUP, question.traceparent) if question.traceparent else None
        answer = self._memory.ask(self._batcher, question)
        refused = bool(question.executor) and not answer.reserved
        result = "refused" if refused else "hit" if answer.matches else "miss"
        servicer.observer.lookup(question.pool, result, servicer.clock.monotonic() - start)
        if span is not None:
            if span.recording:
                span.set(names.POOL, question.pool)
                span.set(names.EXECUTOR, question.executor)
                span.set(names.BLOCKS_MATCHED, answer.matched(question.executor))
                span.set(names.BLOCKS_RESERVED, question.blocks if answer.reserved else 0)
                span.set(names.CHOICE, result)
            span.end()
        return answer


class _Reporting:
    """One Report stream."""

    def __init__(self, servicer: KvCacheServicer) -> None:
        self._servicer = servicer
        self._memory = servicer.memory
        self._executor = ""
        self._response: pb.ReportResponse | None = None

    def take(self, request: pb.ReportRequest) -> bool:
        """A snapshot or events; the answer says how far they are in."""
        self._servicer.expire()
        if not self._executor:
            if not request.executor:
                raise _missing("executor")
            self._memory.executor_connected(request.executor, self)
            self._executor = request.executor
        elif not self._memory.reports.owns(self._executor, self):
            raise StageUnavailable(f"{self._executor} has a newer stream")
        wanted = self._response is not None and self._response.snapshot_wanted
        match request.WhichOneof("content"):
            case "snapshot":
                states = list(map(wire.cache_from_proto, request.snapshot.pools))
                refused = self._memory.snapshot(self._executor, request.snapshot.sequence, states)
                wanted = False
            case "events":
                try:
                    events = [(event.pool, wire.event_from_proto(event)) for event in request.events.events]
                except ValueError as error:
                    raise _missing("events.events.kind") from error
                verdict, refused = self._memory.events(self._executor, request.events.sequence, events)
                if verdict is Verdict.ASK:
                    log.warning("block events missed", executor=self._executor)
                    self._servicer.observer.gap(self._executor)
                    wanted = True
            case _:
                raise _missing("content")
        if refused:
            log.error("an executor reports more blocks than fit", executor=self._executor, blocks=refused)
        sequence = self._memory.reports.executors[self._executor].sequence
        self._response = pb.ReportResponse(sequence=sequence, snapshot_wanted=wanted)
        return True

    def flush(self) -> pb.ReportResponse | None:
        """The newest answer says all."""
        response, self._response = self._response, None
        return response

    def ended(self) -> None:
        """The executor's grace period begins."""
        self._memory.reports.disconnect(self._executor, self, self._servicer.clock.monotonic())


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
    )


def _missing(field: str) -> RequestInvalid:
    return RequestInvalid.of([Violation(field, "is required")])
