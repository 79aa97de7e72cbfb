"""One Generate call: an answer on a stream of its own.

What there is to say is said in the loop's turn in which it came, by a callback of the stream. The call's task sleeps
until the answer's end: to wake it for every token, through all the layers around it, cost more than the token. The text
of steady answers (steady.py) is written as it comes, as the bytes that it is.
"""

from headrace.inference.v1 import inference_pb2
from libs.rpc.context import Context
from libs.streams.outgoing import Outgoing, scatter
from libs.telemetry import names
from libs.telemetry.tracing import Span
from libs.tokens.byte_table import ByteTable
from services.admission.convert import responses
from services.admission.front import Front
from services.admission.generation import Answer, Chunk, Generation
from services.admission.steady import Step


class Generate:
    """The answer of one call on its way to the client. What the stream does not take waits merged.

    Args:
        context: Of the call; nothing else writes to it until the answer has ended.
        span: Of the request.
        streams: Of all calls of this process.
    """

    __slots__ = ("_answer", "_begun", "_context", "_ending", "_news", "_rest", "_span", "_streams", "_text", "told")

    def __init__(self, context: Context, span: Span, streams: "Streams") -> None:
        self.told = False
        """Whether the client has heard anything of the answer."""
        self._context = context
        self._span = span
        self._streams = streams
        self._answer: Answer | None = None
        self._text = ""
        """Of steady tokens, which came after `_rest` and before what is still in the answer."""
        self._news = self._begun = False
        self._rest: list[inference_pb2.GenerateResponse] = []
        self._ending: Chunk | None = None

    def changed(self, _: object) -> None:
        """There is something to take."""
        self._news = True
        self._context.wake()

    async def end(self, answer: Answer) -> Chunk:
        """Tells the answer as it comes; returns its last chunk, all of which but the error has been said."""
        self._answer = answer
        try:
            await self._context.speak(self._say)
        finally:
            self._streams.forget(self)
        assert self._ending is not None
        return self._ending

    @property
    def out(self) -> Outgoing:
        """Where messages go that are told to many calls at once."""
        return self._context.out

    def say(self, text: str) -> None:
        """The text of new tokens, of which nothing else is wanted."""
        if self._text or self._rest or not self._context.room:
            self._text += text
        else:
            self._context.say_bytes(_with_text(text))

    def _say(self) -> bool:
        while self._context.room:
            if self._rest:
                self._context.say(self._rest.pop(0))
                self.told = True
            elif self._text:
                self._context.say_bytes(_with_text(self._text))
                self._text = ""
            elif self._news and self._ending is None:
                self._take()
            else:
                break
        return self._ending is not None and not self._rest

    def _take(self) -> None:
        assert self._answer is not None
        self._news = False
        chunk = self._answer.take()
        if not self._begun and (chunk.count or chunk.text):
            self._begun = True
            self._span.event(names.FIRST_TOKEN)
        self._rest = responses(chunk, "" if self.told else self._answer.request_id)
        if chunk.finish is not None or chunk.error is not None:
            self._ending = chunk
        elif chunk.count and isinstance(self._answer, Generation):
            self._streams.steady(self, self._answer)


class Streams:
    """The calls whose answers are steady."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._outlets: dict[int, _Outlet] = {}
        """By the identity of their tables."""
        self._homes: dict[Generate, tuple[_Outlet, int]] = {}
        self._sequence = 0

    def steady(self, call: Generate, answer: Generation) -> None:
        """What it says next may come at once with the others', if text is all that there is to it."""
        if answer.ended or (table := answer.table) is None:
            return
        if call not in self._homes:
            outlet = self._outlets.setdefault(id(table), _Outlet(table))
            self._sequence += 1
            outlet.enter(self._sequence, call)
            self._homes[call] = outlet, self._sequence
        outlet, number = self._homes[call]
        if outlet.table is table:
            self._front.steady(answer, number, outlet)

    def forget(self, call: Generate) -> None:
        """It has ended."""
        if (home := self._homes.pop(call, None)) is not None:
            outlet, number = home
            if outlet.forget(number):
                del self._outlets[id(outlet.table)]


class _Outlet:
    """Of the calls with the same vocabulary; see steady.Outlet."""

    def __init__(self, table: ByteTable) -> None:
        self.table = table
        self._calls: dict[int, Generate] = {}
        self._outs: dict[int, Outgoing] = {}
        """Theirs: the way to them through their calls and contexts is through cold caches."""

    def enter(self, number: int, call: Generate) -> None:
        """From now on this number is this call's."""
        self._calls[number], self._outs[number] = call, call.out

    def forget(self, number: int) -> bool:
        """It has ended. Whether that was the last one."""
        del self._calls[number], self._outs[number]
        return not self._calls

    def put(self, step: Step) -> None:
        numbers, _, texts = step
        try:
            outs = list(map(self._outs.__getitem__, numbers))
        except KeyError:  # somebody's client has gone
            known = [place for place, number in enumerate(numbers) if number in self._outs]
            numbers, texts = [numbers[place] for place in known], [texts[place] for place in known]
            outs = [self._outs[number] for number in numbers]
        for place in scatter(outs, map(_with_text, texts)):
            self._calls[numbers[place]].say(texts[place])

    def left(self) -> None:
        """What it said is with its call already."""


def _with_text(text: str) -> bytes:
    """A GenerateResponse that has nothing but this text, as bytes."""
    data = text.encode()
    if len(data) < 128:  # its length is one byte
        return b"\x12%c%b" % (len(data), data)
    return inference_pb2.GenerateResponse(text=text).SerializeToString()
