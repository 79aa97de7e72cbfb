"""One Consult stream: a batcher's questions, and what it holds."""

from collections.abc import Callable

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.clock import Clock
from libs.errors import RequestInvalid, StageUnavailable, Violation
from libs.kvcache import wire
from libs.kvcache.values import Answer, Question
from libs.telemetry import names
from libs.telemetry.tracing import Tracing
from services.kvcache.conversation import parsed
from services.kvcache.upkeep import Upkeep

MAX_ANSWERS = 4096
"""Answers in one message; also, answers that wait before no further question is read."""


class Consulting:
    """Claims first; then questions and releases, as they come.

    Args:
        wake: To be called when there is something to say that no question has brought about.
    """

    def __init__(self, upkeep: Upkeep, clock: Clock, tracing: Tracing, wake: Callable[[], None]) -> None:
        self._upkeep = upkeep
        self._memory = upkeep.memory
        self._clock = clock
        self._tracing = tracing
        self._wake = wake
        self._batcher = ""
        self._answers: list[tuple[int, Answer]] = []
        self._recalls: set[tuple[str, str]] = set()

    async def take(self, data: bytes) -> bool:
        """Claims, releases and questions, in this order: what came free can be reserved at once. (A client
        that takes a question back before it is sent does not send it.)"""
        request = parsed(pb.ConsultRequest, data)
        self._upkeep.expire()
        if not self._batcher:
            if not request.batcher:
                raise RequestInvalid.of([Violation("batcher", "is required")])
            self._memory.batcher_connected(
                request.batcher, self, list(map(wire.reservation_from_proto, request.claims))
            )
            self._batcher = request.batcher
            self._upkeep.consults(self._batcher, self._recall)
        elif not self._memory.batcher_owns(self._batcher, self):
            raise StageUnavailable(f"{self._batcher} has a newer stream")
        now = self._clock.monotonic()
        for release in request.releases:
            drift = self._memory.release(self._batcher, release.id, wire.found_from_proto(release), now)
            if drift is not None:
                self._upkeep.drifted(drift)
        for question in request.questions:
            self._answers.append((question.id, self._answer(wire.question_from_proto(question))))
        if request.questions:
            self._upkeep.asked()
        return len(self._answers) < MAX_ANSWERS

    def flush(self) -> pb.ConsultResponse | None:
        """The answers that wait, and what is lacking elsewhere."""
        if not self._answers and not self._recalls:
            return None
        answers, self._answers = self._answers[:MAX_ANSWERS], self._answers[MAX_ANSWERS:]
        recalls, self._recalls = self._recalls, set()
        response = pb.ConsultResponse(recalls=[pb.Recall(executor=executor, pool=pool) for executor, pool in recalls])
        for number, answer in answers:
            wire.add_answer(response, number, answer)
        return response

    def ended(self) -> None:
        """The batcher's grace period begins."""
        if self._memory.batcher_owns(self._batcher, self):
            self._upkeep.consults(self._batcher, None)
        self._memory.batcher_disconnected(self._batcher, self, self._clock.monotonic())

    def _recall(self, executor: str, pool: str) -> None:
        self._recalls.add((executor, pool))
        self._wake()

    def _answer(self, question: Question) -> Answer:
        start = self._clock.monotonic()
        span = self._tracing.start(names.LOOKUP, question.traceparent) if question.traceparent else None
        answer = self._memory.ask(self._batcher, question)
        refused = bool(question.executor) and not answer.reserved
        if refused:
            self._upkeep.refused(self._batcher, question.executor, question.pool)
        result = "refused" if refused else "hit" if answer.matches else "miss"
        if question.block_hashes or refused:  # else only blocks were asked for
            self._upkeep.observer.lookup(question.pool, result, self._clock.monotonic() - start)
        if span is not None:
            if span.recording:
                span.set(names.POOL, question.pool)
                span.set(names.EXECUTOR, question.executor)
                span.set(names.BLOCKS_MATCHED, answer.matched(question.executor))
                span.set(names.BLOCKS_RESERVED, question.blocks if answer.reserved else 0)
                span.set(names.CHOICE, result)
            span.end()
        return answer
