"""Works as requests on a model's stream, and their responses as pieces."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from libs.errors import InternalError, RequestInvalid, StageUnavailable, Violation
from libs.lane.work import FinishReason, Tokens, Work
from libs.tokens.tokenizer import Tokenizer
from services.executor.fit import prompt_faults
from services.executor.stream.prompt import PromptText
from services.executor.stream.source import Piece
from services.executor.triton import request
from services.executor.triton.answer import BROKEN, Answer, TextAnswer, TokenAnswer
from services.executor.triton.contract import Flavor, ModelFacts, tells_cached_tokens
from services.executor.triton.conversation import Asked, Conversation, Response, StreamBroken
from services.executor.triton.faults import ADAPTER_MISSING, error_of
from services.executor.triton.request import Adapter, Limits

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Speech:
    """How to talk to a loaded model."""

    flavor: Flavor
    facts: ModelFacts
    engine: ModelFacts
    """The model that makes the tokens; takes stops, unless the flavor is bls."""
    limits: Limits
    block_tokens: int
    tokenizer: Tokenizer | None
    """The text flavors have one."""
    prompt_text: PromptText | None

    @property
    def stoppable(self) -> bool:
        """Whether a stop reaches the model. A BLS asks the model under an id that nobody is told."""
        return self.flavor != "bls" and "stop" in self.engine.inputs

    @property
    def remembers(self) -> bool:
        """Whether the engine keeps blocks for their prefix; one that does not say does."""
        return self.engine.flag("enable_kv_cache_reuse", True)

    def carries(self, resumed: Tokens) -> bool:
        """Whether the tokens so far can be the end of a prompt: text cannot end in the middle of a character."""
        return self.prompt_text is None or self.tokenizer is None or not self.tokenizer.decode(resumed).endswith(BROKEN)


class TritonSource:
    """See services.executor.stream.source.Source.

    Args:
        expect_cached: Prompt tokens that the engine should find in its cache, where it does not tell itself.
    """

    def __init__(self, speech: Speech, expect_cached: Callable[[Work], int]) -> None:
        self.link: Conversation | None = None
        """The stream; None while the server is away."""
        self.adapters: dict[str, Adapter] = {}
        """Those that works may ask for, by "name@version"."""
        self._speech = speech
        self._expect_cached = expect_cached
        self._tells_cached = tells_cached_tokens(speech.facts)

    async def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        if self.link is None:
            raise StageUnavailable("the Triton server is away", retry_after_s=1.0)
        expected = None if self._tells_cached else self._expect_cached(work)
        async with aclosing(self.answer(self.link, work, self.adapters.get(work.adapter))) as pieces:
            async for piece in pieces:
                yield piece if expected is None else piece._replace(cached_tokens=expected)

    async def answer(
        self, link: Conversation, work: Work, adapter: Adapter | None = None, with_weights: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """The answer to a work over `link`; sends the adapter's weights again if the server asks for them.

        With a grammar, which begins where the answer does, a resumed answer is made again from its start and
        compared; so it is where text cannot carry the tokens so far.
        """
        speech = self._speech
        if found := prompt_faults(work, speech.limits.context_tokens, speech.limits.vocabulary):
            raise RequestInvalid.of(found)
        if request.answer_tokens(work, speech.limits, from_start=False) < 1:  # the context is full
            yield Piece(finish=FinishReason.LENGTH)
            return
        if work.adapter and adapter is None:
            raise StageUnavailable(f"the adapter {work.adapter} is not loaded", retry_after_s=1.0)
        again = bool(work.resumed) and (work.grammar is not None or not speech.carries(work.resumed))
        most = request.answer_tokens(work, speech.limits, again)
        prompt = [*work.prompt] if again else [*work.prompt, *work.resumed]
        written = prompt if speech.prompt_text is None else speech.prompt_text.text(prompt)
        for weights in dict.fromkeys((with_weights, True)):
            try:
                tensors = request.inputs(
                    work, speech.flavor, speech.facts, speech.limits, written, most, adapter, weights, again
                )
            except ValueError as error:
                raise RequestInvalid.of([Violation("sampling", str(error))]) from error
            answer = self._answer(work, most, again)
            try:
                asked = link.ask(speech.facts.name, tensors)
            except StreamBroken as error:
                raise _away(error) from error
            try:
                response = await _next(asked)
                if adapter is not None and not weights and ADAPTER_MISSING.search(response.error):
                    continue
                while True:
                    yield (piece := _piece(answer, response, work))
                    if piece.finish is not None:
                        return
                    response = await _next(asked)
            finally:
                await self._end(link, asked, answer)

    def _answer(self, work: Work, most: int, again: bool) -> Answer:
        speech = self._speech
        if speech.tokenizer is None or speech.flavor == "tensorrt_llm":
            ends = () if work.sampling.ignore_end else speech.limits.ends
            return TokenAnswer(most, ends, work.log_probs, speech.block_tokens, work.resumed if again else ())
        cumulative = speech.flavor == "bls" and speech.facts.flag("accumulate_tokens", False)
        passed = _spelled(speech.tokenizer, work.resumed) if again else b""
        return TextAnswer(most, speech.tokenizer, cumulative, speech.block_tokens, passed)

    async def _end(self, link: Conversation, asked: Asked, answer: Answer) -> None:
        """Returns when the server is done with a request; stops it first, if it would go on."""
        if not asked.over and not answer.complete and self._speech.stoppable:
            engine = self._speech.engine
            link.stop(asked, engine.name, request.stop(engine))
        await asked.end()


def _spelled(tokenizer: Tokenizer, tokens: Tokens) -> bytes:
    table = tokenizer.byte_table
    return table.join(tokens) if table is not None else tokenizer.decode_slowly(tokens).encode()


def _away(error: StreamBroken) -> StageUnavailable:
    return StageUnavailable(f"the Triton server is away, the stream to it broke: {error}", retry_after_s=1.0)


async def _next(asked: Asked) -> Response:
    try:
        return await asked.next()
    except StreamBroken as error:
        raise _away(error) from error


def _piece(answer: Answer, response: Response, work: Work) -> Piece:
    if response.error:
        error = error_of(response.error)
        log.warning("triton answered with an error", said=response.error[:2000], request=work.request_id)
        raise error
    try:
        return answer.push(response.outputs, response.final)
    except ValueError as error:
        log.error("triton answered with tensors that do not fit", fault=str(error), request=work.request_id)
        raise InternalError("the engine failed") from error
