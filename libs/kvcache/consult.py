"""The batcher's side of the KV-cache manager: questions, reservations, and going on without it."""

import asyncio
from collections.abc import Callable

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs.kvcache.stream import Connect, Endpoint, StandingStream
from libs.kvcache.values import Answer, Question, Reservation
from libs.kvcache.wire import answer_from_proto, question_to_proto, reservation_to_proto

BUDGET_S = 0.05
"""What a dispatch waits for an answer before it goes on by load alone."""
MAX_PENDING = 4096
"""Questions without an answer, and releases not sent, at most."""
MESSAGE_HASHES = 200_000
"""Block hashes in one message: below 2 MB."""

Done = Callable[[Answer | None], None]


class _Asked:
    __slots__ = ("done", "question", "timer")

    def __init__(self, question: Question, done: Done, timer: asyncio.TimerHandle) -> None:
        self.question = question
        self.done = done
        self.timer = timer


class Consultation:
    """A standing conversation with one KV-cache manager; holds what it has reserved, and claims it again on
    each new stream. Start it on a running event loop.

    Bounded: past MAX_PENDING a question is answered None at once. Past as many releases that cannot be sent,
    the stream is opened anew: its claims say the same.

    Args:
        batcher: This batcher's instance id.
        budget_s: Seconds until a question is answered None.
    """

    def __init__(self, batcher: str, connect: Connect, endpoint: Endpoint, budget_s: float = BUDGET_S) -> None:
        self._batcher = batcher
        self._budget_s = budget_s
        self._loop = asyncio.get_running_loop()
        self._up = False
        self._greeted = False
        self._asked: dict[int, _Asked] = {}
        self._unsent: dict[int, Question] = {}
        self._releases: list[int] = []
        self._held: dict[int, Reservation] = {}
        self._stream: StandingStream[pb.ConsultRequest, pb.ConsultResponse] = StandingStream(
            "consult",
            self,
            lambda channel: kvcache_pb2_grpc.KvCacheServiceStub(channel).Consult(),
            connect,
            endpoint,
        )

    @property
    def up(self) -> bool:
        """Whether the manager is there."""
        return self._up

    @property
    def held(self) -> int:
        """Reservations held."""
        return len(self._held)

    def ask(self, question: Question, done: Done) -> None:
        """Asks, and calls `done` once: with the answer, or with None when the manager is away or late (then
        nothing is reserved). That may be before `ask` returns. After `release(question.id)` it is not called. It
        must not raise.
        """
        if not self._up or len(self._asked) >= MAX_PENDING or question.id in self._asked:
            done(None)
            return
        timer = self._loop.call_later(self._budget_s, self._late, question.id)
        self._asked[question.id] = _Asked(question, done, timer)
        self._unsent[question.id] = question
        self._stream.wake()

    async def answer(self, question: Question) -> Answer | None:
        """`ask` for coroutines. Cancelled, it releases what it asked for."""
        future: asyncio.Future[Answer | None] = self._loop.create_future()
        self.ask(question, lambda answer: None if future.done() else future.set_result(answer))
        try:
            return await future
        except asyncio.CancelledError:
            self.release(question.id)
            raise

    def release(self, question_id: int) -> None:
        """Ends a reservation, or takes a question back. Unknown ids are ignored."""
        asked = self._asked.pop(question_id, None)
        if asked is not None:
            asked.timer.cancel()
        held = self._held.pop(question_id, None) is not None
        unsent = self._unsent.pop(question_id, None) is not None
        if self._up and (held or (asked is not None and not unsent and asked.question.executor)):
            if len(self._releases) >= MAX_PENDING:
                self._stream.restart()
                return
            self._releases.append(question_id)
            self._stream.wake()

    async def close(self) -> None:
        """Ends the conversation: the manager keeps the reservations for its grace period. Open questions are
        answered None."""
        await self._stream.close()

    def on_up(self) -> None:
        self._up, self._greeted = True, False

    def take(self) -> pb.ConsultRequest | None:
        if self._greeted and not self._unsent and not self._releases:
            return None
        request = pb.ConsultRequest()
        if not self._greeted:
            self._greeted = True
            request.batcher = self._batcher
            request.claims.extend(map(reservation_to_proto, self._held.values()))
        hashes = 0
        while self._unsent:
            question = self._unsent[next(iter(self._unsent))]
            hashes += len(question.block_hashes)
            if request.questions and hashes > MESSAGE_HASHES:
                break
            request.questions.append(question_to_proto(question))
            del self._unsent[question.id]
        request.releases.extend(pb.Release(id=number) for number in self._releases)
        self._releases.clear()
        return request

    def on_message(self, message: pb.ConsultResponse) -> None:
        for answer in message.answers:
            asked = self._asked.pop(answer.id, None)
            if asked is None:
                continue  # late or taken back: its release is on the way
            asked.timer.cancel()
            if answer.reserved:
                question = asked.question
                self._held[question.id] = Reservation(question.id, question.executor, question.pool, question.blocks)
            asked.done(answer_from_proto(answer))

    def on_down(self) -> None:
        self._up = False
        self._unsent.clear()
        self._releases.clear()
        asked, self._asked = list(self._asked.values()), {}
        for one in asked:
            one.timer.cancel()
            one.done(None)

    def _late(self, question_id: int) -> None:
        asked = self._asked[question_id]
        self.release(question_id)
        asked.done(None)
