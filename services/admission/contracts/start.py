"""Starts answers under contracts, and owns what they need."""

import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack

from msgspec.structs import replace

from libs.clock import Clock
from libs.errors import Overloaded
from libs.registry.registry import Registry
from libs.tasks import Tasks
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import Span, Tracing
from services.admission.contracts.agreement import agree
from services.admission.contracts.approvals import Approvals
from services.admission.contracts.caller import ToolCaller
from services.admission.contracts.conversation import Conversation, Steps
from services.admission.contracts.observe import ContractObserver
from services.admission.contracts.tool_calls import Means
from services.admission.generation import Answer
from services.admission.policy import Policy, Tenant
from services.admission.request import Request

MAX_CONVERSATIONS = 4096
"""In flight in one process; one more is Overloaded. Between its steps a conversation counts for no other limit."""


class Contracts:
    """The answers under contracts of this process.

    Args:
        policy: Gives the rules that hold now.
    """

    def __init__(
        self, policy: Callable[[], Policy], registry: Registry, clock: Clock, tracing: Tracing, metrics: Metrics
    ) -> None:
        self.approvals = Approvals(registry)
        self._caller = ToolCaller(clock)
        self._means = Means(policy, self._caller, self.approvals, ContractObserver(metrics), clock, tracing)
        self._tasks = Tasks()
        self._stack = AsyncExitStack()

    @property
    def in_flight(self) -> int:
        """Answers without an end, those between two steps included."""
        return len(self._tasks)

    async def open(self) -> None:
        """Returns when approvals can be heard."""
        await self._stack.enter_async_context(self._caller)
        await self.approvals.start()
        self._stack.push_async_callback(self.approvals.close)
        self._stack.push_async_callback(self._tasks.close)

    async def close(self) -> None:
        """Ends every answer."""
        await self._stack.aclose()

    async def give_up(self) -> None:
        """Ends every answer, and waits until each has been told so."""
        await self._tasks.close()

    async def start(
        self, steps: Steps, request: Request, tenant: Tenant, span: Span, changed: Callable[[Answer], None]
    ) -> Answer:
        """An answer under the contract that the request cites. Its first step has been admitted.

        Raises HeadraceError: everything that `Steps.begin` does, ContractUnknown, ContractBroken, RequestInvalid.
        """
        if self.in_flight >= MAX_CONVERSATIONS:
            raise Overloaded(f"{MAX_CONVERSATIONS} answers under contracts are in flight", retry_after_s=1.0)
        agreement = agree(request, tenant, self._means.policy())
        span.set(names.CONTRACT, agreement.contract.name)
        request = replace(request, request_id=request.request_id or secrets.token_hex(16))
        conversation = Conversation(self._means, steps, agreement, request, tenant, span, changed)
        await conversation.begin()
        self._means.observer.started()
        conversation.started(self._tasks.spawn(conversation.run(), f"conversation {request.request_id}"))
        return conversation
