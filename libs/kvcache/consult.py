"""The batcher's side of the KV-cache manager: questions, reservations, and going on without it."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.kvcache.values import Answer, Question, Reservation
from libs.kvcache.wire import add_question, add_release, answer_from_proto, reservation_to_proto
from libs.streams.client import Dialer
from libs.streams.standing import Endpoint, StandingStream
from libs.tasks import Tasks

CONSULT = "/headrace.kvcache.v1.KvCacheStreamService/Consult"
BUDGET_S = 0.05
"""What a dispatch waits for an answer before it goes on by load alone."""
MAX_PENDING = 4096
"""Questions without an answer, and releases not sent, at most."""
MESSAGE_HASHES = 200_000
"""Block hashes in one message: below 2 MB."""
LAZY_S = 0.02
"""The end of what holds no blocks is said with the next message, or after this long: nobody waits for it. An end that
frees blocks is said at once."""

Done = Callable[[Answer | None], None]


def _nothing(*_: object) -> None: ...


class _Asked:
    __slots__ = ("done", "due", "question")

    def __init__(self, question: Question, done: Done, due: float) -> None:
        self.question = question
        self.done = done
        self.due = due


class Consultation:
    """A standing conversation with one KV-cache manager; holds what it has reserved, and claims it again on
    each new stream. Start it on a running event loop.

    Bounded: past MAX_PENDING questions without an answer, late ones included, a question is answered None at
    once. Past as many releases that cannot be sent, the stream is opened anew: its claims say the same.

    Args:
        batcher: This batcher's instance id.
        budget_s: Seconds until a question is answered None.
        recalled: Told an executor and a pool where others lack blocks that this batcher may hold in advance.
        lost: Told that the stream broke, when open questions have been answered None.
        together: Is entered for the answers of one message.
    """

    def __init__(
        self,
        batcher: str,
        dialer: Dialer,
        endpoint: Endpoint,
        budget_s: float = BUDGET_S,
        *,
        recalled: Callable[[str, str], None] = _nothing,
        lost: Callable[[], None] = _nothing,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._batcher = batcher
        self._recalled = recalled
        self._lost = lost
        self._together = together
        self._budget_s = budget_s
        self._loop = asyncio.get_running_loop()
        self._up = False
        self._greeted = False
        self._asked: dict[int, _Asked] = {}  # in the order in which they are due
        self._timer: asyncio.TimerHandle | None = None  # one for all: most answers come long before
        self._unsent: dict[int, Question] = {}
        self._shrunk: list[Question] = []
        self._releases: list[tuple[int, int | None]] = []
        self._lazy: asyncio.TimerHandle | None = None
        self._held: dict[int, Reservation] = {}
        # Answers on their way that nobody waits for, by question: they come before those asked for later.
        self._ignored: Counter[int] = Counter()
        self._tasks = Tasks()
        self._stream = StandingStream("consult", self, CONSULT, dialer, endpoint, self._tasks)

    @property
    def up(self) -> bool:
        """Whether the manager is there."""
        return self._up

    @property
    def held(self) -> int:
        """Reservations held."""
        return len(self._held)

    def ask(self, question: Question, done: Done) -> None:
        """Asks, and calls `done` once: with the answer, or with None when the manager is away or late. Then
        nothing is reserved, and what was reserved under the same number before stays as it was. That may be
        before `ask` returns. After `release(question.id)` it is not called. It must not raise.
        """
        pending = question.id in self._asked or question.id in self._unsent
        if not self._up or pending or len(self._asked) + len(self._ignored) >= MAX_PENDING:
            done(None)
            return
        due = self._loop.time() + self._budget_s
        self._asked[question.id] = _Asked(question, done, due)
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._overdue)
        self._unsent[question.id] = question
        self._stream.wake()

    def shrink(self, question_id: int, blocks: int) -> None:
        """Makes a reservation smaller, which is never refused: from now on it has no more than so many blocks. To be
        called while no question of this number is open. Without a stream, that is what the next one claims."""
        held = self._held.get(question_id)
        if held is None or blocks >= held.blocks:
            return
        if not blocks:
            self.release(question_id)
            return
        smaller = Question(held.id, held.pool, (), held.executor, blocks)
        self._hold(smaller)
        self._unsent.pop(question_id, None)  # what was to undo a late answer: this does, too
        if self._up:
            self._shrunk.append(smaller)
            self._stream.wake()

    async def answer(self, question: Question) -> Answer | None:
        """`ask` for coroutines. Cancelled, it releases the number, with whatever was reserved under it."""
        future: asyncio.Future[Answer | None] = self._loop.create_future()
        self.ask(question, lambda answer: None if future.done() else future.set_result(answer))
        try:
            return await future
        except asyncio.CancelledError:
            self.release(question.id)
            raise

    def release(self, question_id: int, found_blocks: int | None = None) -> None:
        """Ends a reservation, or takes a question back. Unknown ids are ignored.

        Args:
            found_blocks: Leading blocks of the prompt that the engine said it had found; None when it ran
                nothing, or does not say.
        """
        asked = self._asked.pop(question_id, None)
        held = self._held.pop(question_id, None)
        reserved = held is not None
        if held is not None and self._shrunk:  # releases are read before questions
            self._shrunk = [smaller for smaller in self._shrunk if smaller.id != question_id]
        unsent = self._unsent.pop(question_id, None) is not None
        if asked is not None and not unsent:
            self._ignored[question_id] += 1
            reserved = reserved or bool(asked.question.executor)
        if reserved:
            self._end(question_id, found_blocks, hurry=asked is not None or (held is not None and held.blocks > 0))

    async def close(self) -> None:
        """Ends the conversation: the manager keeps the reservations for its grace period. Open questions are
        answered None."""
        await self._tasks.close()
        for timer in (self._lazy, self._timer):
            if timer is not None:
                timer.cancel()

    def on_up(self) -> None:
        self._up, self._greeted = True, False

    def take(self) -> bytes | None:
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._greeted and not self._unsent and not self._releases and not self._shrunk:
            return None
        request = pb.ConsultRequest()
        if not self._greeted:
            self._greeted = True
            request.batcher = self._batcher
            request.claims.extend(map(reservation_to_proto, self._held.values()))
        for smaller in self._shrunk:  # before what may make it larger again
            add_question(request, smaller)
            self._ignored[smaller.id] += 1
        self._shrunk.clear()
        hashes = 0
        while self._unsent:
            question = self._unsent[next(iter(self._unsent))]
            hashes += len(question.block_hashes)
            if request.questions and hashes > MESSAGE_HASHES:
                break
            add_question(request, question)
            del self._unsent[question.id]
            if question.id not in self._asked:
                self._ignored[question.id] += 1
        for number, found in self._releases:
            add_release(request, number, found)
        self._releases.clear()
        return request.SerializeToString()

    def on_message(self, data: bytes) -> None:
        response = pb.ConsultResponse.FromString(data)
        for recall in response.recalls:
            self._recalled(recall.executor, recall.pool)
        with self._together():
            for answer in response.answers:
                self._answered(answer)
        if self._timer is not None and not self._asked:
            self._timer.cancel()
            self._timer = None

    def _answered(self, answer: pb.Answer) -> None:
        if ignored := self._ignored.pop(answer.id, 0):
            if ignored > 1:
                self._ignored[answer.id] = ignored - 1
            return
        asked = self._asked.pop(answer.id, None)
        if asked is not None:
            if answer.reserved:
                self._hold(asked.question)
            asked.done(answer_from_proto(answer))

    def on_down(self, reason: str) -> None:
        self._up = False
        self._unsent.clear()
        self._shrunk.clear()
        self._releases.clear()
        self._ignored.clear()
        asked, self._asked = list(self._asked.values()), {}
        for one in asked:
            one.done(None)
        self._lost()

    def _overdue(self) -> None:
        """Answers what has waited too long, and looks again when the next question has."""
        now = self._loop.time()
        while self._asked:
            number, asked = next(iter(self._asked.items()))
            if asked.due > now:
                self._timer = self._loop.call_at(asked.due, self._overdue)
                return
            self._late(number)
        self._timer = None

    def _late(self, question_id: int) -> None:
        asked = self._asked.pop(question_id)
        if self._unsent.pop(question_id, None) is None:
            self._ignored[question_id] += 1
            self._undo(asked.question)
        asked.done(None)

    def _undo(self, question: Question) -> None:
        """Makes what the manager may have reserved for a question that was late what it was before."""
        held = self._held.get(question.id)
        if not question.executor:
            return
        if held is None:
            self._end(question.id, None, hurry=True)
        elif (question.executor, question.pool) == (held.executor, held.pool) and question.blocks <= held.blocks:
            self._hold(question)  # less is always granted, but its undoing might not be
        else:
            self._unsent[question.id] = Question(held.id, held.pool, (), held.executor, held.blocks)
            self._stream.wake()

    def _hold(self, question: Question) -> None:
        self._held[question.id] = Reservation(question.id, question.executor, question.pool, question.blocks)

    def _end(self, question_id: int, found_blocks: int | None, *, hurry: bool) -> None:
        """Tells the manager that a reservation ended; without a stream there is nothing to tell."""
        if not self._up:
            return
        if len(self._releases) >= MAX_PENDING:
            self._stream.restart()
            return
        self._releases.append((question_id, found_blocks))
        if hurry:
            self._stream.wake()
        elif self._lazy is None:
            self._lazy = self._loop.call_later(LAZY_S, self._stream.wake)
