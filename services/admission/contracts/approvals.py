"""Questions to a person, in etcd, so that any admission process can be given the answer.

While one waits there is a record under its id that nobody has decided; whoever decides replaces it, if it is still as
it was. So of two decisions the first counts, and the second is told so.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from headrace.registry.v1 import registry_pb2
from libs.errors import ApprovalUnknown, NotAllowed, RequestInvalid, Violation
from libs.registry import keys
from libs.registry.errors import CompareFailed, RegistryError
from libs.registry.registry import Registry
from libs.registry.values import decode, encode
from libs.tasks import Tasks
from services.admission.calls import written
from services.admission.policy import Tenant

LEASE_S = 600
"""For so long a decision is kept, and a question whose process has died."""
RENEW_S = LEASE_S / 3
REASON_CHARACTERS = 1024
REVOKE_S = 5.0
_ID = re.compile(r"[0-9a-f]{32}\.(?P<tenant>[^/\s]{1,253})")
"""128 random bits, and whose question it is: no one else can have the rest of it."""


class Approvals:
    """The questions of this process, and decisions on those of all.

    Holds a copy of what lies under `keys.APPROVALS`: ten minutes of decisions.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._mirror = registry.mirror(keys.APPROVALS, registry_pb2.Approval)
        self._asked: dict[str, asyncio.Future[registry_pb2.Approval]] = {}
        self._stack = AsyncExitStack()
        self._withdrawing = Tasks()

    async def start(self) -> None:
        """Returns when it has heard etcd."""
        await self._stack.enter_async_context(self._mirror)
        self._mirror.on_change(self._heard)

    async def close(self) -> None:
        """Hears nothing more."""
        await self._withdrawing.close()
        await self._stack.aclose()

    @asynccontextmanager
    async def ask(self, tenant: str) -> AsyncIterator["Question"]:
        """A question, for as long as the block runs. Raises StageUnavailable when etcd is away."""
        approval_id = f"{secrets.token_hex(16)}.{tenant}"
        record = registry_pb2.Approval(id=approval_id)
        client = self._registry.client
        decided: asyncio.Future[registry_pb2.Approval] = asyncio.get_running_loop().create_future()
        self._asked[approval_id] = decided
        lease = 0
        try:
            with written("nobody can be asked for an approval"):
                lease = await client.grant(LEASE_S)
                await client.put(keys.approval(approval_id), encode(record), lease)
            yield Question(approval_id, decided, self._registry, lease)
        finally:
            del self._asked[approval_id]
            if lease:
                # Not here: whoever asked may be cancelled once more, by its deadline and then by the end of its call.
                self._withdrawing.spawn(self._withdraw(lease), f"withdraw {approval_id}")

    async def decide(self, approval_id: str, approved: bool, reason: str, caller: Tenant) -> registry_pb2.Approval:
        """Writes a decision. Raises ApprovalUnknown, NotAllowed, RequestInvalid and StageUnavailable."""
        if len(reason) > REASON_CHARACTERS:
            raise RequestInvalid.of([Violation("reason", f"is longer than {REASON_CHARACTERS} characters")])
        found = _ID.fullmatch(approval_id)
        if found is None or not approval_id.isprintable():
            raise ApprovalUnknown("nothing waits under this approval id: ids come with ToolStep.approval_id")
        if not caller.operator and caller.name != found["tenant"]:
            raise NotAllowed("the request that waits is another tenant's; an operator may decide, too")
        key, client = keys.approval(approval_id), self._registry.client
        with written("the decision is perhaps not known"):
            entry = await client.get(key)
            if entry is None:
                raise ApprovalUnknown("nothing waits under this approval id any more")
            before = decode(entry.value, registry_pb2.Approval)
            if before.decided_by:
                raise _decided(before)
            decision = registry_pb2.Approval(id=approval_id, approved=approved, reason=reason, decided_by=caller.name)
            lease = await client.grant(LEASE_S)
            try:
                await client.compare_and_put(key, encode(decision), entry.mod_revision, lease)
            except CompareFailed as conflict:
                await client.revoke(lease)
                if conflict.actual is None:
                    raise ApprovalUnknown("nothing waits under this approval id any more") from None
                raise _decided(decode(conflict.actual.value, registry_pb2.Approval)) from None
        return decision

    async def _withdraw(self, lease: int) -> None:
        """Takes a question back that waits in vain: a decision has a lease of its own and stays."""
        with suppress(RegistryError, TimeoutError):
            async with asyncio.timeout(REVOKE_S):
                await self._registry.client.revoke(lease)

    def _heard(self) -> None:
        for approval_id, decided in self._asked.items():
            record = self._mirror.items.get(approval_id)
            if record is not None and record.decided_by and not decided.done():
                decided.set_result(record)


class Question:
    """One question that waits."""

    def __init__(
        self, approval_id: str, decided: "asyncio.Future[registry_pb2.Approval]", registry: Registry, lease: int
    ) -> None:
        self.id = approval_id
        self._decided = decided
        self._registry = registry
        self._lease = lease

    async def decision(self) -> registry_pb2.Approval:
        """Waits for it, however long that takes; the question is kept alive meanwhile."""
        while True:
            done, _ = await asyncio.wait([self._decided], timeout=RENEW_S)
            if done:
                return self._decided.result()
            with suppress(RegistryError):  # it has two more turns
                await self._registry.client.keepalive(self._lease)


def _decided(record: registry_pb2.Approval) -> ApprovalUnknown:
    said = "approved" if record.approved else "denied"
    return ApprovalUnknown(f"nothing waits under this approval id any more: {record.decided_by} has {said} it")
