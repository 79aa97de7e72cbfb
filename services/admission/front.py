"""The shell of admission: takes requests in, sends works to the routers, brings tokens back.

A request's way: identity (interceptor) → limits → check → ladder → tokenize → admit → reserve → lane → generation →
servicer. A request that cites a contract is a conversation of several of these.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog
from msgspec.structs import replace

from libs.clock import Clock
from libs.errors import HeadraceError, Rerouted, StageUnavailable
from libs.lane.forwarder import DRAINING, Forwarder
from libs.lane.frame import Frame
from libs.lane.work import Decision, Note, Outcome
from libs.tasks import Tasks
from libs.telemetry import names
from libs.telemetry.tracing import Span
from libs.tokens.detokenize import Detokenizer
from services.admission.admit import admit, check, recheck
from services.admission.audit import entry
from services.admission.contracts.conversation import Conversation
from services.admission.deadline import heard
from services.admission.describe import describe
from services.admission.desks import Desks, refuse
from services.admission.explain import explain
from services.admission.generation import UNDEGRADED, Answer, Degradation, Generation
from services.admission.ladder import Effects
from services.admission.limits.limits import Limits, Ticket
from services.admission.policy import Policy, Storage, Tenant
from services.admission.prompts import detokenizer, tokenize
from services.admission.request import Request
from services.admission.request_ids import RequestIds
from services.admission.steady import Outlet, Steady
from services.admission.usage import UsageLedger
from services.admission.validate import grammar_violations

log = structlog.get_logger()

LONG_GRAMMAR = 500
"""Characters from which judging a grammar (up to 10 µs each) is."""
ELSEWHERE_S = 0.05
"""After which a request that a leaving process hands back may be sent again: others are there already."""
MOST_REROUTES = 8
"""A request that was sent to so many models with other tokenizers ends: routes have fewer."""


class _Flight(msgspec.Struct):
    """A request in flight."""

    generation: Generation
    tenant: Tenant
    ticket: Ticket
    effects: Effects
    span: Span
    reroutes: int = 0


class Front:
    """Requests in flight in this process.

    Args:
        forwarder: The way to the routers.
        tasks: Owns what is tokenized again.
    """

    def __init__(self, forwarder: Forwarder, desks: Desks, clock: Clock, tasks: Tasks) -> None:
        self.draining = False
        self.usage = UsageLedger()
        self._desks = desks
        self._forwarder = forwarder
        self._clock = clock
        self._tasks = tasks
        self._flights: dict[int, _Flight] = {}
        self._numbers: dict[Generation, int] = {}
        self._steady = Steady()
        self._request_ids = RequestIds()
        self._sequence = 0
        self._lane = forwarder.open(self)

    @property
    def policy(self) -> Callable[[], Policy]:
        """Gives the rules that hold now."""
        return self._desks.policy

    @property
    def limits(self) -> Limits:
        """What tenants use of their limits."""
        return self._desks.limits

    @property
    def in_flight(self) -> int:
        """Requests without an end."""
        return len(self._flights) + self._desks.contracts.in_flight

    # --- a request in ------------------------------------------------------------------------------

    async def start(self, request: Request, tenant: Tenant, span: Span, changed: Callable[[Answer], None]) -> Answer:
        """Admits a request and sends it on its way. Raises HeadraceError.

        Args:
            changed: Called, synchronously, when the answer has something to take.
        """
        desks = self._desks
        if not request.request_id:
            request = replace(request, request_id=self._request_ids.next())
        if request.call_deadline is not None:
            request = replace(request, call_deadline=heard(request.call_deadline, self._clock.now()))
        span.set(names.REQUEST_ID, request.request_id)
        try:
            if self.draining:
                raise leaves("this process is draining")
            if request.contract:
                return await desks.contracts.start(self, request, tenant, span, changed)
            return await self.begin(request, tenant, span, changed)
        except HeadraceError as error:
            error.metadata.setdefault("request_id", request.request_id)
            self.usage.refuse(tenant.name)
            desks.observer.refused(error)
            desks.audit.record(entry.refused(request, tenant, error, self._clock.now()))
            raise

    async def begin(
        self, request: Request, tenant: Tenant, span: Span, changed: Callable[[Generation], None]
    ) -> Generation:
        """One answer of one model: a whole request, or a step of a conversation, which goes on while this process
        drains. Raises HeadraceError."""
        desks, started = self._desks, self._clock.monotonic()
        desks.limits.knock(tenant, started)
        if request.grammar is not None and len(request.grammar.text) > LONG_GRAMMAR:
            await asyncio.to_thread(grammar_violations, request.grammar)  # `check` finds them remembered
        checked = check(request, tenant, desks.policy(), self._clock.now())
        effects = desks.effects(checked.spec, checked.tier, tenant, started)
        refuse(effects)
        tokenizer = desks.tokenizers.get(checked.spec.name)
        prompt = await tokenize(request, tokenizer)
        admitted = admit(checked, prompt, tokenizer.vocab_size, request.request_id, effects)
        if span.recording:
            describe(span, checked, admitted, effects, self._clock.now())
        degradation = Degradation(effects.level, effects.rungs) if effects.level else UNDEGRADED
        generation = Generation(checked, admitted, detokenizer(request, tokenizer), changed, started, degradation)
        generation.keeps_text = desks.storage(request, tenant) is not Storage.NONE
        # Last of what may fail: what was reserved is given back by the end of a flight, and by nothing else.
        ticket = desks.limits.enter(tenant, admitted.most_tokens, self._clock.monotonic())
        self._sequence += 1
        number = self._sequence
        self._flights[number] = _Flight(generation, tenant, ticket, effects, span)
        self._numbers[generation] = number
        self.usage.begin(tenant.name)
        desks.observer.started(generation)
        self._submit(number, generation)
        return generation

    def steady(self, generation: Generation, member: int, outlet: Outlet) -> None:
        """From now on its tokens may go there at once, under this number."""
        if not generation.steady and (number := self._numbers.get(generation)) is not None:
            self._steady.enter(number, member, generation, outlet)

    def cancel(self, answer: Answer) -> None:
        """Stops an answer whose client has gone; nothing happens when it has ended."""
        if isinstance(answer, Generation):
            if (number := self._numbers.get(answer)) is not None:
                self._lane.cancel(number)
        elif isinstance(answer, Conversation):
            answer.cancel()

    async def give_up(self) -> None:
        """Ends every request, for its client to send it again elsewhere: this process ends."""
        for number, flight in list(self._flights.items()):
            self._lane.forget(number)
            self._end(number, flight, Outcome(error=leaves("this process ended before the answer did")))
        await self._desks.contracts.give_up()

    def tools_off(self, request: Request, tenant: Tenant) -> bool:
        """Whether a rung of the ladder has switched tools off for such a request, now."""
        spec = self._desks.policy().model(request.model)
        tier = request.tier or tenant.default_tier
        return spec is not None and self._desks.effects(spec, tier, tenant, self._clock.monotonic()).tools_off

    def waiting(self, tenant: str) -> int:
        """Requests of a tenant that have no token yet."""
        return sum(
            flight.generation.first_token is None for flight in self._flights.values() if flight.tenant.name == tenant
        )

    async def count_tokens(self, request: Request, tenant: Tenant) -> tuple[int, int]:
        """Tokens of the prompt, and the model's context. Raises HeadraceError."""
        checked = check(request, tenant, self._desks.policy(), self._clock.now())
        prompt = await tokenize(request, self._desks.tokenizers.get(checked.spec.name))
        return len(prompt), checked.spec.context_tokens

    async def explain(self, request: Request, tenant: Tenant) -> Sequence[Decision]:
        """What every stage would decide now. Runs nothing, and takes nothing from a limit."""
        decisions, work = await explain(request, tenant, self._desks, self._clock)
        return decisions if work is None else [*decisions, *await self._forwarder.explain(work)]

    # --- tokens out: the sink of the lane to the routers -------------------------------------------

    def on_ready(self) -> None:
        """The forwarder's lane is always ready."""

    def on_frame(self, frame: Frame) -> None:
        """Hands each entry to its generation."""
        now, flights = self._clock.monotonic(), self._flights
        for left in self._steady.pass_on(frame):
            for number, _, tokens, log_probs in left.entries():
                if (flight := flights.get(number)) is not None:
                    generation = flight.generation
                    if generation.steady:
                        self._steady.leave(number, goes_on=True)
                    generation.push(tokens, log_probs, now)
                    if generation.stop:
                        self._lane.cancel(number)

    def on_note(self, work_id: int, note: Note) -> None:
        """Hands it to its generation."""
        if (flight := self._flights.get(work_id)) is None:
            return
        generation = flight.generation
        if note.restart:
            self._steady.leave(work_id, goes_on=True)
            generation.restart(self._detokenizer_of(generation))
        generation.note(note.pool, note.waiting, note.tried)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        """Ends the generation and counts what it used, once."""
        flight = self._flights[work_id]
        if isinstance(outcome.error, Rerouted) and flight.reroutes < MOST_REROUTES and not flight.generation.tokens:
            flight.reroutes += 1
            self._tasks.spawn(self._send_again(work_id, flight, outcome.error), "reroute")
            return
        self._end(work_id, flight, outcome)

    def on_broken(self, reason: str) -> None:
        """Never: the forwarder mends its lanes itself."""
        raise AssertionError(reason)

    # --- inside ------------------------------------------------------------------------------------

    def _detokenizer_of(self, generation: Generation) -> Detokenizer | None:
        checked = generation.checked
        return detokenizer(checked.request, self._desks.tokenizers.get(checked.spec.name))

    def _submit(self, number: int, generation: Generation) -> None:
        self._lane.submit(number, generation.work)
        if generation.stop:
            self._lane.cancel(number)

    async def _send_again(self, number: int, flight: _Flight, rerouted: Rerouted) -> None:
        """The router chose a model with another tokenizer: the request goes again, as tokens of that one."""
        generation, desks = flight.generation, self._desks
        model = rerouted.metadata["model"]
        tried = [name for name in rerouted.metadata.get("tried", "").split(",") if name]
        try:
            checked = recheck(generation.checked, model, desks.policy())
            tokenizer = desks.tokenizers.get(model)
            prompt = await tokenize(checked.request, tokenizer)
            request_id = generation.work.request_id
            admitted = admit(
                checked, prompt, tokenizer.vocab_size, request_id, flight.effects, chosen=model, tried=tried
            )
        except HeadraceError as error:
            if number in self._flights:  # else it was given up meanwhile
                self._end(number, flight, Outcome(error=error))
            return
        if number not in self._flights:  # given up meanwhile
            return
        generation.become(checked, admitted, detokenizer(checked.request, tokenizer))
        self._submit(number, generation)

    def _end(self, number: int, flight: _Flight, outcome: Outcome) -> None:
        generation, desks, now = flight.generation, self._desks, self._clock.monotonic()
        del self._flights[number], self._numbers[generation]
        self._steady.leave(number, goes_on=False)
        generation.end(outcome, now)
        work = generation.work
        made = generation.made
        self.usage.end(work.tenant, len(work.prompt), outcome.cached_tokens, made)
        desks.limits.settle(flight.ticket, len(work.prompt) + made, now)
        desks.observer.ended(generation, outcome, now)
        storage = desks.storage(generation.checked.request, flight.tenant)
        desks.audit.record(entry.ended(generation, flight.tenant, outcome, storage, self._clock.now()), storage)


def leaves(message: str) -> StageUnavailable:
    """What a request is told that has to go elsewhere, at once: this process takes nothing any more."""
    return StageUnavailable(message, metadata={DRAINING: "true"}, retry_after_s=ELSEWHERE_S)
