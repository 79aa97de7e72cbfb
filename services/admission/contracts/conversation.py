"""One answer under a contract: steps of the model, tool calls between them, and a valid end."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from msgspec.structs import replace

from libs import errors
from libs.errors import CapacityError, ContractBroken, HeadraceError, Violation
from libs.lane.work import FinishReason
from libs.telemetry import names
from libs.telemetry.tracing import Span
from services.admission.contracts import validity
from services.admission.contracts.agreement import Agreement
from services.admission.contracts.budget import Budget
from services.admission.contracts.offer import off, offers
from services.admission.contracts.outgoing import Outgoing
from services.admission.contracts.reading import Reading
from services.admission.contracts.tool_calls import Circumstances, Means, ToolCalls
from services.admission.contracts.turns import opening, repair, results
from services.admission.generation import Answer, Chunk, Finish, Generation, ToolStep
from services.admission.policy import Tenant
from services.admission.request import Request

log = structlog.get_logger()

TRIES = 3
"""How often a step is sent again that found no room."""
LONG_TEXT = 20_000
"""Characters from which validating (about 0.1 µs each, and more by the schema) is moved off the event loop."""


class Steps(Protocol):
    """What runs the steps: admission's front."""

    async def begin(
        self, request: Request, tenant: Tenant, span: Span, changed: Callable[[Generation], None]
    ) -> Generation:
        """Starts one generation, whatever contract the request cites. Raises HeadraceError."""
        ...

    def cancel(self, answer: Answer) -> None:
        """Stops it; nothing happens when it has ended."""
        ...

    def tools_off(self, request: Request, tenant: Tenant) -> bool:
        """Whether a rung of the ladder has switched tools off for such a request, now."""
        ...


class Conversation:
    """An Answer of several steps.

    Args:
        changed: Called when there is something to take.
    """

    def __init__(
        self,
        means: Means,
        steps: Steps,
        agreement: Agreement,
        request: Request,
        tenant: Tenant,
        span: Span,
        changed: Callable[[Answer], None],
    ) -> None:
        self._means = means
        self._steps = steps
        self._agreement = agreement
        self._contract = agreement.contract
        self._request = request
        self._tenant = tenant
        self._span = span
        self._changed = changed
        self._budget = Budget(self._contract, tenant, request)
        self._chat = request.chat
        self._repairs = agreement.repairs
        self._repairing = False
        self._deadline = 0.0
        self._generation: Generation | None = None
        self._reading: Reading
        self._step_span = Span()
        """Of a later step; the first one's is that of the request."""
        self._mark = 0
        self._wake = asyncio.Event()
        self._out = Outgoing(resumed=bool(request.resumed))
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._started = means.clock.monotonic()

    # --- what both doors see -----------------------------------------------------------------------

    @property
    def request_id(self) -> str:
        """Of the request, and of all its steps."""
        return self._request.request_id

    def take(self) -> Chunk:
        """What is to be told next; calls back at once when there is more."""
        chunk = self._out.take()
        if self._out:
            self._changed(self)
        return chunk

    def cancel(self) -> None:
        """Ends everything: the step that runs, a call, a question. Nothing happens after the end."""
        self._end(errors.Cancelled("whoever asked has gone"))
        self._stop_step()  # here, too: a task that is cancelled before it has begun runs nothing
        if self._task is not None:
            self._task.cancel()

    # --- its life ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Starts the first step. Raises HeadraceError; then nothing runs."""
        if self._chat is not None:
            held = self._agreement.constrainable and self._agreement.exact
            tools = () if self._tools_off() else offers(self._contract, self._means.policy()).values()
            self._chat = opening(self._chat, tools, "" if held else self._contract.output_schema)
        await self._step(self._span)
        assert self._generation is not None
        self._deadline = self._generation.checked.deadline

    def started(self, task: asyncio.Task[None]) -> None:
        """Takes the task that runs it, which `cancel` ends."""
        self._task = task

    async def run(self) -> None:
        """Its task, from the end of `begin` to the end of the answer."""
        try:
            self._end(await self._converse())
        except HeadraceError as error:
            self._end(error)
        except Exception:
            log.exception("conversation failed", contract=self._contract.name)
            self._end(errors.InternalError("internal error; the mesh's logs have the cause"))
        except asyncio.CancelledError:
            self._end(errors.StageUnavailable("this process is stopping", retry_after_s=0.5))
            raise
        finally:
            self._step_span.end()
            self._stop_step()

    def _stop_step(self) -> None:
        if self._generation is not None:
            self._steps.cancel(self._generation)

    async def _converse(self) -> Finish:
        calls = ToolCalls(self._means, self._circumstances())
        while True:
            number, finish = self._budget.step, await self._listen()
            self._budget.spend(finish)
            said = self._reading.text
            if self._reading.calls:
                self._budget.check()  # a call whose result nobody could look at is not made
                made = await calls.make(number, self._reading.calls)
                turns = results(said, made, self._budget.last)
            elif violations := await self._violations(finish):
                self._repair(violations)
                turns = repair(said, violations)
            else:
                self._show(self._reading.held)
                return self._budget.whole(self._means.clock.monotonic() - self._started)
            self._chat = [*(self._chat or ()), *turns]
            await self._next()

    async def _listen(self) -> Finish:
        """Hears the model out; shows what may be shown at once. Raises what ended it."""
        assert self._generation is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            chunk = self._generation.take()
            if chunk.restart:
                self._out.restart(self._mark)
                self._reading.restart()
            self._show(self._reading.push(chunk))
            if chunk.error is not None:
                raise chunk.error
            if chunk.finish is not None:
                self._show(self._reading.end())
                self._step_span.set(names.GEN_AI_OUTPUT_TOKENS, chunk.finish.output_tokens)
                self._step_span.end()
                return chunk.finish

    async def _violations(self, finish: Finish) -> Sequence[Violation]:
        schema, text = self._contract.output_schema, self._reading.text
        if not schema:
            return ()
        if finish.reason is FinishReason.LENGTH:
            return [Violation("answer", f"was cut after {finish.output_tokens} tokens: no more were allowed")]
        if len(text) > LONG_TEXT:
            return await asyncio.to_thread(validity.violations, text, schema)
        return validity.violations(text, schema)

    def _repair(self, violations: Sequence[Violation]) -> None:
        """Makes ready for another try. Raises ContractBroken when there is none."""
        if not self._repairs or not self._budget.may_go_on():
            told = "; ".join(f"{violation.subject}: {violation.description}" for violation in violations)
            raise ContractBroken(f"the answer breaks the contract {self._contract.name}: {told}", violations=violations)
        self._repairs -= 1
        self._repairing = True
        self._means.observer.repaired(self._contract.name)
        self._out.restart(self._mark)

    async def _next(self) -> None:
        """Starts the next step. Where there is no room for it, it waits for as long as it is told to."""
        self._budget.check()
        number = self._budget.step
        for left in range(TRIES, -1, -1):
            span = self._means.tracing.start(
                names.STEP, self._span.traceparent, attributes={names.CONTRACT_STEP: number}
            )
            try:
                await self._step(span)
            except HeadraceError as error:
                span.error(error.message, error.reason)
                span.end()
                if isinstance(error, errors.RequestInvalid):  # what is too long now is not the caller's fault
                    told = f"step {number} cannot be asked for: {error.message}"
                    raise ContractBroken(told, violations=error.violations) from error
                pause_s = error.retry_after_s
                late = pause_s is None or self._means.clock.now() + pause_s >= self._deadline
                if not isinstance(error, CapacityError) or late or not left:
                    raise
                await asyncio.sleep(pause_s or 0.0)
            else:
                self._step_span = span
                return

    async def _step(self, span: Span) -> None:
        first, agreement, request = self._budget.step == 1, self._agreement, self._request
        held = agreement.constrainable and (agreement.exact or self._repairing or self._budget.last)
        judged = bool(self._contract.output_schema)
        asked = replace(
            request,
            chat=self._chat,
            sampling=self._budget.sampling(request.sampling),
            grammar=agreement.grammar if held else request.grammar,
            text=request.text or judged,
            token_ids=request.token_ids and agreement.exact,
            resumed=request.resumed if first else (),
            resumed_version=request.resumed_version if first else "",
            timeout_s=request.timeout_s if first else None,
            call_deadline=request.call_deadline if first else self._deadline,
            traceparent=span.traceparent,
        )
        self._wake.clear()
        generation = await self._steps.begin(asked, self._budget.tenant(), span, lambda _: self._wake.set())
        self._generation = generation
        self._mark = 0 if first else self._out.mark()
        self._reading = Reading(
            live=held or not judged, exact=agreement.exact, text=request.text, resumed=generation.resumed_text
        )

    def _show(self, chunk: Chunk) -> None:
        if chunk != Chunk():
            self._out.push(chunk)
            self._changed(self)

    def _end(self, how: Finish | HeadraceError) -> None:
        if self._ended:
            return
        self._ended = True
        self._means.observer.ended(self._contract.name, how.reason if isinstance(how, HeadraceError) else "OK")
        self._out.end(how)
        self._changed(self)

    def _circumstances(self) -> Circumstances:
        def tell(step: ToolStep) -> None:
            self._out.tool(step)
            self._changed(self)

        return Circumstances(
            contract=self._contract,
            tenant=self._tenant.name,
            request_id=self.request_id,
            deadline=self._deadline,
            traceparent=self._span.traceparent,
            off=self._tools_off,
            tell=tell,
        )

    def _tools_off(self) -> str:
        return off(self._means.policy(), self._tenant, self._steps.tools_off(self._request, self._tenant))
