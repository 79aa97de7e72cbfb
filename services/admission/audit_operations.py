"""The operations API's calls about the audit log. Only tenants with `operator: true` get in.

Each admission process keeps its own files, so whichever is asked asks the others, with its caller's own credentials.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from google.protobuf import timestamp_pb2
from google.protobuf.message import Message
from grpc import aio

from headrace.operations.v1 import operations_pb2, operations_pb2_grpc
from headrace.registry.v1 import registry_pb2
from libs.errors import RequestInvalid, StageUnavailable, Violation
from libs.registry import keys
from libs.registry.mirror import Mirror
from libs.rpc.call import CALL
from libs.rpc.paging import size
from services.admission.audit import Audit, Entry
from services.admission.audit.store import Search
from services.admission.calls import operator

LOCAL = "headrace-local"
"""Metadata of a call that one admission process makes of another: answer for yourself."""
ASK_TIMEOUT_S = 10.0
TIES = 256
"""Entries of one process that may bear the same time as the last of a page."""
_TOKEN_DIGITS = 20


class AuditOperations:
    """A part of OperationsService.

    Args:
        instance: This process.
        services: Processes of every stage, by "service/instance".
        connect: Gives the channel to an endpoint.
    """

    def __init__(
        self,
        audit: Audit,
        instance: str,
        services: Mirror[registry_pb2.ServiceInstance],
        connect: Callable[[str], aio.Channel],
    ) -> None:
        self._audit = audit
        self._instance = instance
        self._processes = services
        self._connect = connect

    async def ListAudit(
        self, request: operations_pb2.ListAuditRequest, context: object
    ) -> operations_pb2.ListAuditResponse:
        """From the files of every admission process."""
        operator()
        most = size(request.page_size)
        last = _token(request.page_token)
        search = Search(
            tenant=_segment(request.tenant),
            since=_time(request, "since"),
            until=_until(request, last),
            request_id=request.request_id,
            operators_only=request.operators_only,
        )
        try:
            own = await self._audit.find(search, most + TIES)
        except OSError as error:
            raise StageUnavailable(f"the audit log cannot be read: {error}", retry_after_s=5.0) from error
        entries = [_to_proto(entry) for entry in own]
        if LOCAL not in CALL.get().metadata:
            forwarded = operations_pb2.ListAuditRequest()
            forwarded.CopyFrom(request)
            forwarded.page_size = most
            for answer in await self._ask_others("ListAudit", forwarded):
                entries += answer.entries
        entries = [entry for entry in entries if last is None or _order(entry) < last]
        entries.sort(key=_order, reverse=True)
        page = entries[:most]
        token = "{}/{}/{}".format(*_order(page[-1])) if len(entries) > most else ""
        return operations_pb2.ListAuditResponse(entries=page, next_page_token=token)

    async def DeleteAudit(
        self, request: operations_pb2.DeleteAuditRequest, context: object
    ) -> operations_pb2.DeleteAuditResponse:
        """In every admission process; raises when one of them does not answer, so that nobody takes it for done."""
        operator()
        tenant = _segment(request.tenant)
        if not tenant:
            raise RequestInvalid.of([Violation("tenant", "is required")])
        try:
            deleted = await self._audit.delete(tenant)
        except OSError as error:
            raise StageUnavailable(f"the audit log cannot be written: {error}", retry_after_s=5.0) from error
        if LOCAL not in CALL.get().metadata:
            answers = await self._ask_others("DeleteAudit", request)
            deleted += sum(answer.deleted for answer in answers)
        return operations_pb2.DeleteAuditResponse(deleted=deleted)

    async def _ask_others(self, method: str, request: Message) -> Sequence[Any]:
        """Every other admission process. Raises StageUnavailable, naming those that do not answer."""
        others = [
            each
            for each in self._processes.items.values()
            if each.service == "admission" and each.instance != self._instance
        ]
        metadata = [(key, value) for key, value in CALL.get().metadata.items() if key == "authorization"]
        options = {"metadata": (*metadata, (LOCAL, "1")), "timeout": ASK_TIMEOUT_S}

        async def one(endpoint: str) -> Any:
            stub = operations_pb2_grpc.OperationsServiceStub(self._connect(endpoint))
            return await getattr(stub, method)(request, **options)

        answers = await asyncio.gather(*(one(each.endpoint) for each in others), return_exceptions=True)
        silent = [each.instance for each, answer in zip(others, answers, strict=True) if isinstance(answer, Exception)]
        if silent:
            raise StageUnavailable(f"no answer from {', '.join(sorted(silent))}", retry_after_s=2.0)
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _order(entry: operations_pb2.AuditEntry) -> tuple[int, str, int]:
    return entry.time.ToMicroseconds(), entry.instance, entry.sequence


def _token(token: str) -> tuple[int, str, int] | None:
    if not token:
        return None
    try:
        time, instance, sequence = token.split("/")
        if len(time) > _TOKEN_DIGITS or len(sequence) > _TOKEN_DIGITS:
            raise ValueError(token)
        return int(time), instance, int(sequence)
    except ValueError:
        raise RequestInvalid.of([Violation("page_token", "is none that this service gave")]) from None


def _until(request: operations_pb2.ListAuditRequest, last: tuple[int, str, int] | None) -> float | None:
    bounds: Iterable[float] = (
        *((until,) if (until := _time(request, "until")) is not None else ()),
        *(((last[0] + 1) / 1e6,) if last is not None else ()),
    )
    return min(bounds, default=None)


def _time(request: operations_pb2.ListAuditRequest, field: Literal["since", "until"]) -> float | None:
    """Unix seconds. Raises RequestInvalid for what no calendar has."""
    if not request.HasField(field):
        return None
    try:
        return float(getattr(request, field).ToMicroseconds() / 1e6)
    except ValueError as error:
        raise RequestInvalid.of([Violation(field, str(error))]) from error


def _segment(tenant: str) -> str:
    """The name of a folder, or nothing: no name leads out of the log."""
    if tenant:
        try:
            keys.tenant(tenant)
        except ValueError as error:
            raise RequestInvalid.of([Violation("tenant", str(error))]) from error
        if tenant.startswith("."):
            raise RequestInvalid.of([Violation("tenant", f"{tenant!r} is no name of a tenant")])
    return tenant


def _to_proto(entry: Entry) -> operations_pb2.AuditEntry:
    time = timestamp_pb2.Timestamp()
    time.FromMicroseconds(round(entry.time * 1e6))
    return operations_pb2.AuditEntry(
        time=time,
        instance=entry.instance,
        sequence=entry.sequence,
        tenant=entry.tenant,
        action=entry.action,
        request_id=entry.request_id,
        subject=entry.subject,
        outcome=entry.outcome,
        reason=entry.reason,
        prompt_tokens=entry.prompt_tokens,
        output_tokens=entry.output_tokens,
        prompt=entry.prompt,
        answer=entry.answer,
        change=entry.change,
    )
