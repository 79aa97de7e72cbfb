"""Works as requests to an endpoint: within its limits, past its breaker, with the usage counted."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import structlog

from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.errors import HeadraceError, Overloaded, RequestInvalid, StageUnavailable
from libs.lane.work import FinishReason, Work
from libs.tokens.tokenizer import Tokenizer
from services.executor.fit import prompt_faults
from services.executor.remote import request
from services.executor.remote.answer import Answer
from services.executor.remote.breaker import Breaker, State
from services.executor.remote.chunks import Chunk
from services.executor.remote.endpoint import TRAILER_S, Endpoint, EndpointFault, Events
from services.executor.remote.faults import Fault, broken
from services.executor.remote.limits import Limits
from services.executor.remote.prompt import Prompts
from services.executor.remote.usage import Usage
from services.executor.stream.source import Piece
from services.executor.stream.text import written

log = structlog.get_logger()

MOST_WAIT_S = 30.0
"""A work that the endpoint's limits would hold longer is refused, so that it can go elsewhere."""


class RemoteSource:
    """Opens streams at an endpoint; see services.executor.stream.source.Source.

    Args:
        api: Which of OpenAI's APIs, and whether with token ids.
        dialect: What the endpoint understands of it.
        used: Told of the tokens of each work that was sent.
        changed: Told of each change of the breaker.
    """

    def __init__(
        self,
        model: ModelSpec,
        endpoint: Endpoint,
        api: request.Api,
        dialect: request.Dialect,
        tokenizer: Tokenizer,
        prompts: Prompts,
        clock: Clock,
        used: Callable[[Usage], None],
        changed: Callable[[State], None],
    ) -> None:
        remote = model.remote
        self._model = model
        self._endpoint = endpoint
        self._api = api
        self._dialect = dialect
        self._replay = remote.resume != "continue"
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._clock = clock
        self._used = used
        self._changed = changed
        self._limits = Limits(remote.requests_per_minute, remote.tokens_per_minute)
        self._breaker = Breaker(remote.breaker)
        self._state = State.CLOSED

    def refusal(self, work: Work) -> HeadraceError | None:
        """Why a work would be refused now: it cannot be, or the breaker is open."""
        found = prompt_faults(work, self._model.context_tokens, self._tokenizer.vocab_size)
        return RequestInvalid.of(found) if found else self._left_alone()

    def _left_alone(self) -> StageUnavailable | None:
        retry_s = self._breaker.refused_s(self._clock.monotonic())
        self._tell()
        if retry_s is None:
            return None
        return StageUnavailable("the endpoint fails: it is left alone for a while", retry_after_s=max(retry_s, 0.1))

    async def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        text = written(self._tokenizer, work.resumed)[0] if work.resumed and not self._replay else ""
        most = request.longest(work, self._model.context_tokens)
        if len(work.resumed) >= most:
            yield Piece(finish=FinishReason.LENGTH)
            return
        write = self._prompts.writer(self._api)
        asked = request.body(self._model.remote.model, self._api, self._dialect, work, most, text, write)
        exchange = _Exchange(work, len(work.prompt) + most)
        await self._turn(exchange)
        if (error := self._left_alone()) is not None:
            self._limits.give_back(exchange.reserved, request=True)
            raise error
        ticket = self._breaker.enter()
        answer = Answer(self._tokenizer, work, self._replay or not text, self._token_ids)
        success: bool | None = None
        try:
            async with self._endpoint.stream(request.PATHS[self._api], asked) as events:
                exchange.sent = True
                try:
                    while answer.finish is None:
                        for piece in self._taken(await events.next(), events, answer):
                            exchange.tokens += len(piece.tokens)
                            yield piece
                    await self._trailer(events, answer)
                except GeneratorExit:
                    success = True  # the answer is as long as it was to be; its usage still comes
                    await self._trailer(events, answer)
                    raise
            success = True
            yield Piece(finish=answer.finish)
        except EndpointFault as fault:
            success = False if fault.fault.failure else None
            self._faulty(fault.fault)
            raise fault.fault.error from None
        finally:
            self._breaker.leave(ticket, success, self._clock.monotonic())
            self._tell()
            self._settle(exchange, answer)

    @property
    def _token_ids(self) -> bool:
        return self._api == "completions_tokens" and self._dialect.token_ids

    async def _turn(self, exchange: "_Exchange") -> None:
        """Waits as the limits want it. Raises Overloaded."""
        wait = self._limits.take(exchange.reserved, self._clock.monotonic())
        try:
            while wait > 0:
                if wait > min(MOST_WAIT_S, exchange.work.deadline - self._clock.now()):
                    raise Overloaded("the limits of the endpoint are used up", retry_after_s=wait)
                await asyncio.sleep(wait)
                wait = self._limits.closed_s(self._clock.monotonic())
        except BaseException:
            self._limits.give_back(exchange.reserved, request=True)
            raise

    def _taken(self, found: Sequence[Chunk], events: Events, answer: Answer) -> Iterator[Piece]:
        if not found and events.ended:
            raise EndpointFault(broken("ended the stream before the answer"))
        for chunk in found:
            if chunk.error is not None:
                raise self._endpoint.failed(chunk.error)
            if (piece := answer.push(chunk)) is not None:
                yield piece

    async def _trailer(self, events: Events, answer: Answer) -> None:
        """Reads to the end of the stream: there is the usage, and only then the connection can be used again."""
        try:
            async with asyncio.timeout(TRAILER_S):
                while not events.ended:
                    for chunk in await events.next():
                        if chunk.usage is not None:
                            answer.push(chunk)
        except (TimeoutError, EndpointFault):
            pass  # the answer is whole; the usage is estimated

    def _faulty(self, fault: Fault) -> None:
        now = self._clock.monotonic()
        if fault.wait_s:
            self._limits.close(fault.wait_s, now)
        if fault.fatal:
            log.error("the endpoint refuses the executor's key", model=self._model.name)
            self._breaker.trip(now)
        elif fault.failure:
            log.warning("endpoint failed", model=self._model.name, reason=fault.error.message)

    def _settle(self, exchange: "_Exchange", answer: Answer) -> None:
        if not exchange.sent:
            self._limits.give_back(exchange.reserved)
            return
        usage = answer.usage or Usage(len(exchange.work.prompt), 0, exchange.tokens)
        self._limits.give_back(exchange.reserved - usage.input - usage.output)
        self._used(usage)

    def _tell(self) -> None:
        state = self._breaker.state(self._clock.monotonic())
        if state is not self._state:
            self._state = state
            log.warning("breaker changed", model=self._model.name, state=state.name.lower())
            self._changed(state)


class _Exchange:
    """A work at the endpoint."""

    __slots__ = ("reserved", "sent", "tokens", "work")

    def __init__(self, work: Work, reserved: int) -> None:
        self.work = work
        self.reserved = reserved
        """Tokens taken from the limits."""
        self.sent = False
        """The endpoint took it."""
        self.tokens = 0
        """That came, by our own count."""
