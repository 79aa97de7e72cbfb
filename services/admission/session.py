"""One Session stream: many generations in, and what has accumulated of all of them out.

What there is to say is said in the loop's turn in which it came, by a callback of the stream, as in generate.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.inference.v1 import inference_pb2
from libs.errors import HeadraceError, Overloaded, RequestInvalid, Violation
from libs.rpc.call import Call
from libs.rpc.context import Context
from libs.rpc.status import to_failure
from libs.telemetry import names
from libs.telemetry.span import Kind
from libs.telemetry.tracing import Span, Tracing
from services.admission.convert import finish_fields, notes, request_from_proto
from services.admission.describe import describe_finish
from services.admission.front import Front
from services.admission.generation import Answer, Chunk, Generation, parts
from services.admission.steady import SessionOutlet

MAX_GENERATIONS = 4096
"""In flight on one stream; one more is answered Overloaded."""
RESPONSE_BYTES = 1_000_000
"""Of text, tokens and log-probabilities in one message, the last generation's excepted: below 4 MiB."""
RESPONSE_ENDS = 256
"""Failures in one message, each a few kB at most."""
_ATTRIBUTES = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: names.SESSION}


class Session:
    """The generations of one stream.

    Bounded: MAX_GENERATIONS, each of whose output waits merged until it is written. A client that does not
    read what became of as many is not read from either.

    Args:
        wake: Called when there is something to say, or nothing will be any more.
    """

    def __init__(self, front: Front, tracing: Tracing, call: Call, wake: Callable[[], None]) -> None:
        self._front = front
        self._tracing = tracing
        self._call = call
        self._members: dict[int, _Member] = {}
        self._dirty: dict[_Member, None] = {}
        self._outlets: dict[int, SessionOutlet] = {}
        """By the identity of their tables."""
        self._failed: list[inference_pb2.SessionEnd] = []
        self._wake = wake
        self._taken = asyncio.Event()
        self._closed = False
        self.leaving = False
        """Whether this stream ends because its process does."""

    async def begin(self, message: inference_pb2.SessionGenerate) -> None:
        """Starts one generation; what is wrong with it ends it, not the stream."""
        while len(self._failed) >= MAX_GENERATIONS:
            self._taken.clear()
            await self._taken.wait()
        member = _Member(message.id, message.request, self._dirty, self._wake)
        if message.id in self._members:
            fault = Violation("generates.id", f"{message.id} is in use by a running generation")
            # Only the stream itself can carry this: an end for the id would end the other generation.
            raise RequestInvalid.of([fault])
        self._members[message.id] = member
        member.span = self._tracing.start(
            names.SESSION,
            self._call.metadata.get("traceparent", ""),
            kind=Kind.SERVER,
            attributes=_ATTRIBUTES,
        )
        request = request_from_proto(
            message.request,
            traceparent=member.span.traceparent,
            call_deadline=self._call.deadline,
            in_session=True,
        )
        try:
            if len(self._members) > MAX_GENERATIONS:
                raise Overloaded(f"{MAX_GENERATIONS} generations are in flight on this session", retry_after_s=1.0)
            member.answer = await self._front.start(request, self._call.who(), member.span, member.changed)
        except HeadraceError as error:
            self._fail(member, error)
            return
        member.changed(member.answer)

    def cancel(self, member_id: int) -> None:
        """Stops one generation; unknown ids are ignored."""
        member = self._members.get(member_id)
        if member is not None and member.answer is not None:
            self._front.cancel(member.answer)

    def half_close(self) -> None:
        """The client sends nothing more: the stream ends when the last generation has."""
        self._closed = True
        self._wake()

    def leave(self) -> None:
        """The process ends: the stream does, too, as soon as nothing runs on it. New generations are handed back."""
        self.leaving = True
        self._wake()

    def abandon(self) -> None:
        """The stream has gone: everything on it stops."""
        for member in self._members.values():
            if member.answer is not None:
                self._front.cancel(member.answer)
                member.span.event(names.CANCELLED)
                member.span.end()
        self._members.clear()

    @property
    def has_news(self) -> bool:
        """Whether there is something to say."""
        return bool(self._dirty or self._failed) or any(self._outlets.values())

    @property
    def over(self) -> bool:
        """Whether nothing is left to say, and never will be."""
        return (self._closed or self.leaving) and not self._members and not self.has_news

    async def tell(self, context: Context) -> None:
        """Says what accumulates, until the session is over. Nothing else writes to the call meanwhile."""

        def say() -> bool:
            while context.room and self.has_news:
                if (message := self.take()).ByteSize():  # who has just begun has nothing to say yet
                    context.say(message)
            return self.over

        await context.speak(say)

    def take(self) -> inference_pb2.SessionResponse:
        """One message with what has accumulated."""
        ids, counts, texts, apart = self._step()
        if apart:
            return inference_pb2.SessionResponse(ids=ids, counts=counts, texts=texts if any(texts) else None)
        token_ids: list[int] = []
        log_probs: list[float] = []
        told: list[inference_pb2.SessionNote] = []
        ends: list[Any] = self._failed[:RESPONSE_ENDS]  # messages, or the fields of one
        self._failed = self._failed[RESPONSE_ENDS:]
        self._taken.set()
        size, dirty = 40 * len(ids), self._dirty
        for member in list(dirty):
            if size >= RESPONSE_BYTES or len(ends) >= RESPONSE_ENDS:
                break
            del dirty[member]
            chunk = member.next()
            if member.parts or member.news:
                dirty[member] = None  # for the next message
            if chunk.version or chunk.waiting or chunk.restart or chunk.tool_steps:
                for note in notes(chunk, member.id):
                    told.append(note)
                    size += note.ByteSize()
            count, text = chunk.count, chunk.text
            if count or text:
                ids.append(member.id)
                counts.append(count)
                texts.append(text)
                size += 20 + 4 * len(text)
                if chunk.token_ids:
                    token_ids += chunk.token_ids
                    size += 5 * len(chunk.token_ids)
                if chunk.log_probs:
                    log_probs += chunk.log_probs
                    size += 4 * len(chunk.log_probs)
                if chunk.finish is None and chunk.error is None and member not in dirty:  # what waits comes first
                    self._steady(member)
            if chunk.finish is not None:
                describe_finish(member.span, chunk.finish)
                finish = finish_fields(chunk.finish)
                ends.append({"id": member.id, "request_id": member.request_id, "finish": finish})
                self._forget(member)
            elif chunk.error is not None:
                ends.append(
                    inference_pb2.SessionEnd(
                        id=member.id, request_id=member.request_id, failure=to_failure(chunk.error)
                    )
                )
                member.span.error(chunk.error.message, chunk.error.reason)
                self._forget(member)
        return inference_pb2.SessionResponse(
            ids=ids, counts=counts, texts=texts if any(texts) else None, token_ids=token_ids, log_probs=log_probs,
            ends=ends, notes=told,
        )  # fmt: skip

    def _step(self) -> tuple[list[int], list[int], list[str], bool]:
        """What steady answers have to say, and whether that is to be a message of its own."""
        ids: list[int] = []
        counts: list[int] = []
        texts: list[str] = []
        apart = False
        for outlet in self._outlets.values():
            (its_ids, its_counts, its_texts), its_apart = outlet.take(RESPONSE_BYTES)
            ids += its_ids
            counts += its_counts
            texts += its_texts
            if apart := its_apart:
                break
        return ids, counts, texts, apart

    def _steady(self, member: "_Member") -> None:
        """What it says next may come at once with the others', if text is all that there is to it."""
        answer = member.answer
        if isinstance(answer, Generation) and not answer.ended and (table := answer.table) is not None:
            outlet = self._outlets.get(id(table))
            if outlet is None:
                outlet = self._outlets[id(table)] = SessionOutlet(table, self._wake)
            self._front.steady(answer, member.id, outlet)

    def _fail(self, member: "_Member", error: HeadraceError) -> None:
        member.span.error(error.message, error.reason)
        request_id = error.metadata.get("request_id", member.request_id)
        self._failed.append(inference_pb2.SessionEnd(id=member.id, request_id=request_id, failure=to_failure(error)))
        self._forget(member)
        self._wake()

    def _forget(self, member: "_Member") -> None:
        member.span.end()
        member.told = True
        self._members.pop(member.id, None)


class _Member:
    """One generation of the stream, by the client's number."""

    __slots__ = ("_asked_id", "_dirty", "_wake", "answer", "id", "news", "parts", "span", "told")

    def __init__(
        self,
        member_id: int,
        request: inference_pb2.GenerateRequest,
        dirty: "dict[_Member, None]",
        wake: Callable[[], None],
    ) -> None:
        self.id = member_id
        self._asked_id = request.request_id
        self._dirty = dirty
        self._wake = wake
        self.answer: Answer | None = None
        self.span = Span()
        self.parts: deque[Chunk] = deque()
        """Of a chunk that does not fit into one message, what is left."""
        self.news = False
        """Whether the answer has changed since it was taken from last."""
        self.told = False
        """Whether its end has been told."""

    def changed(self, _: Answer) -> None:
        """There is something to take; not yet while it is being started, and not behind its end."""
        if self.answer is not None and not self.told:
            self.news = True
            self._dirty[self] = None
            self._wake()

    @property
    def request_id(self) -> str:
        """The id of the request, as far as it has one yet."""
        return self.answer.request_id if self.answer is not None else self._asked_id

    def next(self) -> Chunk:
        """What goes into the next message."""
        if not self.parts:
            assert self.answer is not None
            self.news = False
            chunk = self.answer.take()
            if not chunk.restart and not chunk.tool_steps:
                return chunk
            self.parts.extend(parts(chunk))
        return self.parts.popleft()
