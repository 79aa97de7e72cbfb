"""One Generate call: an answer on a stream of its own.

What there is to say is said in the loop's turn in which it came, by a callback of the stream. The call's task sleeps
until the answer's end: to wake it for every token, through all the layers around it, cost more than the token.
"""

import asyncio

from headrace.inference.v1 import inference_pb2
from libs.rpc.context import Context
from libs.telemetry import names
from libs.telemetry.tracing import Span
from services.admission.convert import responses
from services.admission.generation import Answer, Chunk


class Generate:
    """The answer of one call on its way to the client. What the stream does not take waits merged in the answer.

    Args:
        context: Of the call; nothing else writes to it until the answer has ended.
        span: Of the request.
    """

    def __init__(self, context: Context, span: Span) -> None:
        self.told = False
        """Whether the client has heard anything of the answer."""
        self._context = context
        self._span = span
        self._answer: Answer | None = None
        self._news = self._begun = False
        self._rest: list[inference_pb2.GenerateResponse] = []
        self._ending: Chunk | None = None
        self._last: asyncio.Future[Chunk] = asyncio.get_running_loop().create_future()

    def changed(self, _: object) -> None:
        """There is something to take."""
        self._news = True
        self._context.wake()

    async def end(self, answer: Answer) -> Chunk:
        """Tells the answer as it comes; returns its last chunk, all of which but the error has been said."""
        self._answer = answer
        self._context.say_with(self._say)
        if self._news:
            self._context.wake()
        return await self._last

    def _say(self) -> None:
        try:
            while self._context.room:
                if self._rest:
                    self._context.say(self._rest.pop(0))
                    self.told = True
                elif self._news and self._ending is None:
                    self._take()
                else:
                    break
            if self._ending is not None and not self._rest and not self._last.done():
                self._last.set_result(self._ending)
        except Exception as error:  # nothing may be raised here; the call's task raises it
            if not self._last.done():
                self._last.set_exception(error)

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
