"""The shell of admission: takes requests in, sends works to the routers, brings tokens back.

A request's way: identity (interceptor) → check → tokenize → admit → lane → generation → servicer.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence

import structlog

from libs.clock import Clock
from libs.errors import HeadraceError, RequestInvalid, StageUnavailable, Violation
from libs.lane.forwarder import Forwarder
from libs.lane.work import Decision, Frame, Note, Outcome
from libs.telemetry import names
from libs.telemetry.tracing import Span
from libs.tokens.detokenize import Detokenizer
from libs.tokens.template import TemplateRefusedError
from libs.tokens.tokenizer import Tokenizer
from services.admission.admit import Admitted, Checked, admit, check
from services.admission.generation import Finish, Generation
from services.admission.observe import Observer
from services.admission.policy import Policy, Tenant
from services.admission.request import Request
from services.admission.tokenizers import Tokenizers
from services.admission.usage import UsageLedger
from services.admission.validate import grammar_violations

log = structlog.get_logger()

LONG_TEXT = 20_000
"""Characters from which tokenizing (about 0.5 µs each) is moved off the event loop."""
LONG_GRAMMAR = 500
"""Characters from which judging a grammar (up to 10 µs each) is."""


class Front:
    """Requests in flight in this process.

    Args:
        forwarder: The way to the routers.
        policy: Gives the rules that hold now.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        policy: Callable[[], Policy],
        tokenizers: Tokenizers,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self.draining = False
        self.usage = UsageLedger()
        self.policy = policy
        self._forwarder = forwarder
        self._tokenizers = tokenizers
        self._observer = observer
        self._clock = clock
        self._generations: dict[int, Generation] = {}
        self._numbers: dict[Generation, int] = {}
        self._sequence = 0
        self._lane = forwarder.open(self)

    @property
    def in_flight(self) -> int:
        """Requests without an end."""
        return len(self._generations)

    # --- a request in ------------------------------------------------------------------------------

    async def start(
        self, request: Request, tenant: Tenant, span: Span, changed: Callable[[Generation], None]
    ) -> Generation:
        """Admits a request and sends it on its way. Raises HeadraceError.

        Args:
            changed: Called, synchronously, when the generation has something to take.
        """
        started = self._clock.monotonic()
        request_id = request.request_id or uuid.uuid4().hex
        span.set(names.REQUEST_ID, request_id)
        try:
            if self.draining:
                raise StageUnavailable("this process is draining", retry_after_s=0.5)
            if request.grammar is not None and len(request.grammar.text) > LONG_GRAMMAR:
                await asyncio.to_thread(grammar_violations, request.grammar)  # `check` finds them remembered
            running = self.usage.running(tenant.name)
            checked = check(request, tenant, self.policy(), running, self._clock.now())
            tokenizer = self._tokenizers.get(checked.spec.name)
            prompt = await _tokenize(request, tokenizer)
            admitted = admit(checked, prompt, tokenizer.vocab_size, request_id)
        except HeadraceError as error:
            error.metadata.setdefault("request_id", request_id)
            self._observer.refused(error)
            raise
        if span.recording:
            _describe(span, checked, admitted, self._clock.now())
        needs_text = request.text or bool(request.sampling.stop)
        detokenizer = Detokenizer(tokenizer) if needs_text else None
        generation = Generation(checked, admitted, detokenizer, changed, started)
        self._sequence += 1
        number = self._sequence
        self._generations[number], self._numbers[generation] = generation, number
        self.usage.begin(tenant.name)
        self._observer.started(generation)
        self._lane.submit(number, admitted.work)
        if generation.stop:
            self._lane.cancel(number)
        return generation

    def cancel(self, generation: Generation) -> None:
        """Stops a generation whose client has gone; nothing happens when it has ended."""
        if (number := self._numbers.get(generation)) is not None:
            self._lane.cancel(number)

    async def count_tokens(self, request: Request, tenant: Tenant) -> tuple[int, int]:
        """Tokens of the prompt, and the model's context. Raises HeadraceError."""
        checked = check(request, tenant, self.policy(), 0, self._clock.now())
        prompt = await _tokenize(request, self._tokenizers.get(checked.spec.name))
        return len(prompt), checked.spec.context_tokens

    async def explain(self, request: Request, tenant: Tenant) -> Sequence[Decision]:
        """What every stage would decide now. Runs nothing."""
        try:
            running = self.usage.running(tenant.name)
            checked = check(request, tenant, self.policy(), running, self._clock.now())
            tokenizer = self._tokenizers.get(checked.spec.name)
            admitted = admit(checked, await _tokenize(request, tokenizer), tokenizer.vocab_size, "explain")
        except HeadraceError as error:
            return [Decision("admission", f"refuse: {error.reason}", error.message)]
        return [Decision("admission", "admit", admitted.reason), *await self._forwarder.explain(admitted.work)]

    # --- tokens out: the sink of the lane to the routers -------------------------------------------

    def on_ready(self) -> None:
        """The forwarder's lane is always ready."""

    def on_frame(self, frame: Frame) -> None:
        """Hands each entry to its generation."""
        now, end = self._clock.monotonic(), 0
        tokens, log_probs = frame.token_ids, frame.log_probs
        for number, count in zip(frame.work_ids, frame.counts, strict=True):
            start, end = end, end + count
            if (generation := self._generations.get(number)) is not None:
                generation.push(tokens[start:end], log_probs[start:end], now)
                if generation.stop:
                    self._lane.cancel(number)

    def on_note(self, work_id: int, note: Note) -> None:
        """Hands it to its generation."""
        if (generation := self._generations.get(work_id)) is not None:
            generation.note(note.pool, note.waiting)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        """Ends the generation and counts what it used, once."""
        generation = self._generations.pop(work_id)
        del self._numbers[generation]
        generation.end(outcome, self._clock.monotonic())
        work = generation.work
        self.usage.end(work.tenant, len(work.prompt), outcome.cached_tokens, generation.tokens - len(work.resumed))
        self._observer.ended(generation, outcome, self._clock.monotonic())

    def on_broken(self, reason: str) -> None:
        """Never: the forwarder mends its lanes itself."""
        raise AssertionError(reason)


async def _tokenize(request: Request, tokenizer: Tokenizer) -> list[int]:
    """The prompt's tokens. Raises RequestInvalid when the model's template refuses the chat."""

    def encode() -> list[int]:
        if request.chat is not None:
            return tokenizer.render_chat([(turn.role, turn.content) for turn in request.chat])
        return tokenizer.encode(request.prompt or "", add_special=True)

    length = len(request.prompt or "") + sum(len(turn.content) for turn in request.chat or ())
    try:
        return await asyncio.to_thread(encode) if length > LONG_TEXT else encode()
    except TemplateRefusedError as refusal:
        raise RequestInvalid.of([Violation("chat.messages", str(refusal))]) from refusal


def _describe(span: Span, checked: Checked, admitted: Admitted, now: float) -> None:
    request, work = checked.request, admitted.work
    sampling, grammar = work.sampling, work.grammar
    span.set(names.GEN_AI_OPERATION, names.CHAT if request.chat is not None else names.TEXT_COMPLETION)
    span.set(names.GEN_AI_PROVIDER, names.PROVIDER)
    span.set(names.GEN_AI_REQUEST_MODEL, request.model)
    span.set(names.GEN_AI_RESPONSE_MODEL, checked.spec.name)
    span.set(names.GEN_AI_REQUEST_STREAM, True)
    span.set(names.GEN_AI_OUTPUT_TYPE, "json" if grammar is not None and grammar.form == "json_schema" else "text")
    asked: Sequence[tuple[str, float | int | None]] = (
        (names.GEN_AI_REQUEST_MAX_TOKENS, sampling.max_tokens),
        (names.GEN_AI_REQUEST_TEMPERATURE, sampling.temperature),
        (names.GEN_AI_REQUEST_TOP_P, sampling.top_p),
        (names.GEN_AI_REQUEST_TOP_K, sampling.top_k),
        (names.GEN_AI_REQUEST_SEED, sampling.seed),
    )
    for name, value in asked:
        if value is not None:
            span.set(name, value)
    span.set(names.GEN_AI_INPUT_TOKENS, len(work.prompt))
    span.set(names.TENANT, work.tenant)
    span.set(names.TIER, work.tier.name.lower())
    span.set(names.DEADLINE_LEFT, work.deadline - now)
    span.set(names.REASON, admitted.reason)
    for key, text in request.tags.items():
        span.set(f"headrace.tag.{key}", text)


def describe_finish(span: Span, finish: Finish) -> None:
    """Sets on a request's span what its end was: through both doors."""
    span.set(names.GEN_AI_OUTPUT_TOKENS, finish.output_tokens)
    span.set(names.GEN_AI_CACHED_TOKENS, finish.cached_tokens)
    span.set(names.GEN_AI_FINISH_REASONS, [finish.reason.name.lower()])
    span.set(names.GEN_AI_TIME_TO_FIRST_CHUNK, finish.first_token_s)
