"""Makes the tool calls of one answer: refuses, asks, calls, and tells how far each is."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from libs.clock import Clock
from libs.errors import ApprovalDenied, CallerError, CapacityError, DeadlinePassed
from libs.telemetry import names
from libs.telemetry.span import Value
from libs.telemetry.tracing import Span, Tracing
from services.admission.contracts.approvals import Approvals
from services.admission.contracts.caller import ToolCaller
from services.admission.contracts.calls import Call, Malformed
from services.admission.contracts.observe import ContractObserver
from services.admission.contracts.offer import Offer, offers, refusal
from services.admission.contracts.turns import Result
from services.admission.generation import ToolStep
from services.admission.policy import Contract, Policy

Tell = Callable[[ToolStep], None]

SLACK_S = 0.005
"""By which the timer of a call may be ahead of the clock that deadlines go by."""


@dataclass(frozen=True, slots=True)
class Means:
    """What all conversations of a process share."""

    policy: Callable[[], Policy]
    caller: ToolCaller
    approvals: Approvals
    observer: ContractObserver
    clock: Clock
    tracing: Tracing


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is the same for all calls of one answer."""

    contract: Contract
    tenant: str
    request_id: str
    deadline: float
    """Unix seconds."""
    traceparent: str
    off: Callable[[], str]
    """Why no tool may be called now; "" when they may."""
    tell: Tell


class ToolCalls:
    """Calls are made one after the other: what the model wants first happens first."""

    def __init__(self, means: Means, at: Circumstances) -> None:
        self._means = means
        self._at = at

    async def make(self, step: int, calls: Sequence[Call | Malformed]) -> Sequence[Result]:
        """What came of each. A failure is a result; raises only what ends the whole answer: DeadlinePassed.

        Args:
            step: The number of the step whose calls these are.
        """
        made = []
        for call in calls:
            made.append(await self._make(step, call))
            if self._means.clock.now() >= self._at.deadline - SLACK_S:
                called = f" of {call.tool}" if isinstance(call, Call) else ""
                raise DeadlinePassed(f"the deadline passed during the call{called}", metadata={"stage": "tool"})
        return made

    async def _make(self, step: int, call: Call | Malformed) -> Result:
        if isinstance(call, Malformed):
            self._means.observer.called("other", "refused")
            return Result("", f"this call was not made: {call.why}", failed=True)
        if why := self._refusal(call):
            self._means.observer.called(self._label(call), "refused")
            return self._failed(step, call, f"the call was not made: {why}")
        attributes: dict[str, Value] = {names.GEN_AI_TOOL_NAME: call.tool, names.CONTRACT_STEP: step}
        parent = self._at.traceparent
        with self._means.tracing.start(f"{names.EXECUTE_TOOL} {call.tool}", parent, attributes=attributes) as span:
            try:
                text = await self._approved(step, call, span)
            except (CallerError, CapacityError) as error:
                failure = error
            else:
                self._means.observer.called(call.tool, "done")
                self._at.tell(ToolStep(step, call.tool, call.text, "done", text))
                return Result(call.tool, text)
            span.error(failure.message, failure.reason)
        self._means.observer.called(call.tool, "denied" if isinstance(failure, ApprovalDenied) else "failed")
        return self._failed(step, call, f"{failure.reason}: {failure.message}")

    async def _approved(self, step: int, call: Call, span: Span) -> str:
        """What the tool says, once it may be called."""
        offer = self._offer(call)
        if offer.needs_approval:
            await self._ask(step, call)
            span.event(names.APPROVAL)
            offer = self._offer(call)  # a person takes time: the rules may be others by now
        self._at.tell(ToolStep(step, call.tool, call.text, "running"))
        headers = {"Headrace-Request-Id": self._at.request_id, "Headrace-Tenant": self._at.tenant}
        if span.traceparent:
            headers["traceparent"] = span.traceparent
        return await self._means.caller.call(offer, call.text, self._at.deadline, headers)

    async def _ask(self, step: int, call: Call) -> None:
        """Waits for a person to agree. Raises ApprovalDenied and DeadlinePassed."""
        left_s = self._at.deadline - self._means.clock.now()
        try:
            async with asyncio.timeout(left_s), self._means.approvals.ask(self._at.tenant) as question:
                self._at.tell(ToolStep(step, call.tool, call.text, "waiting", approval_id=question.id))
                decision = await question.decision()
        except TimeoutError:
            raise DeadlinePassed(
                f"nobody decided on the call of {call.tool} before the deadline", metadata={"stage": "approval"}
            ) from None
        if not decision.approved:
            raise ApprovalDenied(f"a person denied this call{': ' * bool(decision.reason)}{decision.reason}")

    def _refusal(self, call: Call) -> str:
        return refusal(call, self._at.contract, self._means.policy(), self._at.off())

    def _offer(self, call: Call) -> Offer:
        """Raises ApprovalDenied when the call may not be made any more."""
        if why := self._refusal(call):
            raise ApprovalDenied(f"it may not be called any more: {why}")
        return offers(self._at.contract, self._means.policy())[call.tool]

    def _failed(self, step: int, call: Call, why: str) -> Result:
        self._at.tell(ToolStep(step, call.tool, call.text, "failed", why))
        return Result(call.tool, why, failed=True)

    def _label(self, call: Call) -> str:
        return call.tool if call.tool in {each.tool for each in self._at.contract.tools} else "other"
