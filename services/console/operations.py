"""OperationsService as the console asks it: through the door of a mesh, with an operator's key."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import Message
from grpc import aio

from headrace.operations.v1 import operations_pb2 as pb
from headrace.operations.v1 import operations_pb2_grpc
from headrace.registry.v1 import registry_pb2
from libs.client.errors import HeadraceError, StageUnavailable, from_rpc_error
from libs.rpc.channels import CLIENT_OPTIONS
from services.console.problem import Problem

TIMEOUT_S = 20.0
PAGE = 200


class Operations:
    """One channel to a mesh. Methods raise libs.client.errors.HeadraceError; `told` makes a Problem of it."""

    def __init__(self, target: str, key: str) -> None:
        self.target = target
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._channel = aio.insecure_channel(target, options=CLIENT_OPTIONS)
        self._stub: Any = operations_pb2_grpc.OperationsServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def models(self) -> tuple[list[registry_pb2.Model], list[pb.ModelStatus]]:
        """The whole catalogue by name, and how far each model is."""
        models: list[registry_pb2.Model] = []
        statuses: list[pb.ModelStatus] = []
        token = ""
        while True:
            answer = await self._ask("ListModels", pb.ListModelsRequest(page_size=PAGE, page_token=token))
            models += answer.models
            statuses += answer.statuses
            if not (token := answer.next_page_token):
                return models, statuses

    async def apply(
        self,
        models: Sequence[registry_pb2.Model],
        *,
        prune: bool,
        force: bool,
        dry_run: bool = False,
        expected: Mapping[str, int] | None = None,
    ) -> list[pb.ModelChange]:
        """What changes, or would."""
        request = pb.ApplyModelsRequest(
            models=models, dry_run=dry_run, prune=prune, force=force, expected_revisions=expected or {}
        )
        return list((await self._ask("ApplyModels", request)).changes)

    async def pin(self, request: pb.PinPrefixRequest) -> pb.PinnedPrefix:
        """The pin as it is stored."""
        pinned: pb.PinnedPrefix = (await self._ask("PinPrefix", request)).pin
        return pinned

    async def unpin(self, request: pb.UnpinPrefixRequest) -> None:
        """Takes a pin away."""
        await self._ask("UnpinPrefix", request)

    async def pins(self) -> list[pb.PinnedPrefix]:
        """Every pin, by name."""
        pins: list[pb.PinnedPrefix] = []
        token = ""
        while True:
            answer = await self._ask("ListPins", pb.ListPinsRequest(page_size=PAGE, page_token=token))
            pins += answer.pins
            if not (token := answer.next_page_token):
                return pins

    async def watch(self, models: Sequence[str] = ()) -> AsyncIterator[pb.WatchPlacementsResponse]:
        """A snapshot of the placements, then what changes."""
        call = self._stub.WatchPlacements(pb.WatchPlacementsRequest(models=models), metadata=self._metadata)
        try:
            with _typed():
                while (message := await call.read()) is not aio.EOF:
                    yield message
            raise StageUnavailable("the stream ended", code=14)
        finally:
            call.cancel()

    async def ask(self, method: str, request: Message) -> Any:
        """The answer of a call of OperationsService."""
        return await self._ask(method, request)

    async def every(self, method: str, request: Any, field: str) -> list[Any]:
        """What all pages of a list hold in a field; `request` is used up."""
        found: list[Any] = []
        request.page_size = PAGE
        while True:
            answer = await self._ask(method, request)
            found += getattr(answer, field)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    async def audit(self, request: pb.ListAuditRequest) -> pb.ListAuditResponse:
        """A page of the audit log."""
        answer: pb.ListAuditResponse = await self._ask("ListAudit", request)
        return answer

    async def delete_audit(self, tenant: str) -> int:
        """Deletes a tenant's entries; how many that were."""
        return int((await self._ask("DeleteAudit", pb.DeleteAuditRequest(tenant=tenant))).deleted)

    async def _ask(self, method: str, request: object) -> Any:
        with _typed():
            return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=TIMEOUT_S)


def told(error: HeadraceError, target: str) -> Problem:
    """What is wrong, and what to do about it."""
    violations = [
        f"{each.subject}: {each.description}" if each.subject else each.description for each in error.violations
    ]
    match error.reason:
        case "NOT_ALLOWED":
            advice = "`--key`, or HEADRACE_API_KEY: the key of a tenant whose policy says `operator: true`"
            return Problem(f"this needs an operator's key: {error.message}", advice=advice)
        case "CREDENTIALS_INVALID":
            return Problem(
                f"the mesh at {target} does not know this key: {error.message}", advice="`--key`, or HEADRACE_API_KEY"
            )
        case "CATALOGUE_CHANGED":
            advice = "the same command again shows what it would change now"
            what = "the catalogue" if violations else "it"
            return Problem(f"somebody else changed {what} meanwhile", violations or [error.message], advice)
        case "":
            return Problem(
                f"no mesh answers at {target}", [error.message], "`headrace up` starts one; `--target` names another"
            )
    title = error.reason.replace("_", " ").lower()
    return Problem(title if violations else f"{title}: {error.message}", violations)


@contextmanager
def _typed() -> Iterator[None]:
    """Around a call: its error as that of the SDK."""
    try:
        yield
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StageUnavailable("the other end cancelled the call", code=14) from None
