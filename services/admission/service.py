"""The public API: proto in, proto out. Decides nothing."""

import asyncio

from grpc import aio

from headrace.inference.v1 import inference_pb2, inference_pb2_grpc
from libs.errors import ApprovalUnknown, HeadraceError
from libs.lane.forwarder import DRAINING
from libs.rpc.call import CALL
from libs.rpc.context import Context
from libs.rpc.paging import page
from libs.telemetry.tracing import Span, Tracing
from services.admission.contracts.approvals import Approvals
from services.admission.convert import count_request_from_proto, degradation_trailer, request_from_proto
from services.admission.describe import describe_finish
from services.admission.front import Front, leaves
from services.admission.generate import Generate, Streams
from services.admission.observe import Observer
from services.admission.policy_source import PolicySource
from services.admission.session import Session

HANDED_BACK = (("headrace-handed-back", "true"),)
"""Initial metadata of a call that Envoy sends to another process: this one ends."""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves headrace.inference.v1.InferenceService.

    Args:
        approvals: What waits for a person; None where nothing ever does.
    """

    def __init__(
        self,
        front: Front,
        source: PolicySource,
        tracing: Tracing,
        observer: Observer,
        approvals: Approvals | None = None,
    ) -> None:
        self._front = front
        self._source = source
        self._tracing = tracing
        self._observer = observer
        self._approvals = approvals
        self._sessions: set[Session] = set()
        self._streams = Streams(front)
        self._generates = 0
        self._last_call = 0.0

    @property
    def in_flight(self) -> int:
        """Calls that ask for answers."""
        return self._generates + len(self._sessions)

    @property
    def idle_s(self) -> float:
        """Seconds since the last call that asked for answers, refused ones included."""
        return asyncio.get_running_loop().time() - self._last_call

    def leave(self) -> None:
        """Ends each session as soon as nothing runs on it."""
        for session in self._sessions:
            session.leave()

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """One answer on one stream; whatever ends the stream early cancels the generation."""
        self._generates += 1
        self._last_call = asyncio.get_running_loop().time()
        try:
            await self._generate(request, context)
        finally:
            self._generates -= 1

    async def _generate(self, request: inference_pb2.GenerateRequest, context: Context) -> None:
        call = CALL.get()
        span = call.span or Span()
        generate = Generate(context, span, self._streams)
        parsed = request_from_proto(request, traceparent=span.traceparent, call_deadline=call.deadline)
        try:
            answer = await self._front.start(parsed, call.identity, span, generate.changed)
            try:
                last = await generate.end(answer)
            finally:
                self._front.cancel(answer)
            if last.error is not None:  # behind the tokens that came before it
                raise last.error
        except HeadraceError as error:
            if not generate.told and DRAINING in error.metadata:
                await context.send_initial_metadata(HANDED_BACK)
            raise
        assert last.finish is not None
        context.set_trailing_metadata(degradation_trailer(last.finish))
        describe_finish(span, last.finish)

    async def Session(self, _: object, context: Context) -> None:  # type: ignore[override]
        """Many answers on one stream."""
        self._last_call = asyncio.get_running_loop().time()
        if self._front.draining:
            raise leaves("this process is draining")
        session = Session(self._front, self._tracing, CALL.get(), context.wake)
        self._sessions.add(session)
        reader = asyncio.create_task(_read(context, session), name="session-reader")
        self._observer.sessions(1)
        try:
            await context.send_initial_metadata(())
            await session.tell(context)
            if not session.leaving:
                await reader  # raises what ended the reading
        finally:
            self._sessions.discard(session)
            self._observer.sessions(-1)
            session.abandon()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def CountTokens(
        self, request: inference_pb2.CountTokensRequest, context: object
    ) -> inference_pb2.CountTokensResponse:
        """Counts as Generate would."""
        tokens, most = await self._front.count_tokens(count_request_from_proto(request), CALL.get().identity)
        return inference_pb2.CountTokensResponse(tokens=tokens, context_tokens=most)

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: object
    ) -> inference_pb2.ListModelsResponse:
        """Models and aliases that the caller may use."""
        policy = self._source.policy
        usable, token = page(policy.usable(CALL.get().identity), request.page_size, request.page_token)
        response = inference_pb2.ListModelsResponse(next_page_token=token)
        for name in usable:
            spec = policy.model(name)
            assert spec is not None
            response.models.add(
                name=name,
                context_tokens=spec.context_tokens,
                capabilities=spec.capabilities,
                ready=self._source.ready(spec.name),
                labels=self._source.labels(spec.name),
            )
        return response

    async def Approve(self, request: inference_pb2.ApproveRequest, context: object) -> inference_pb2.ApproveResponse:
        """A person's decision on a tool call, wherever that waits."""
        if self._approvals is None:
            raise ApprovalUnknown("nothing waits for an approval here")
        await self._approvals.decide(request.approval_id, request.approved, request.reason, CALL.get().identity)
        return inference_pb2.ApproveResponse()


async def _read(context: Context, session: Session) -> None:
    """Feeds a session from its stream. A fault of the stream itself wakes the writer, which then raises it."""
    try:
        while (message := await context.read()) is not aio.EOF:
            for generate in message.generates:
                await session.begin(generate)
            for member_id in message.cancels:
                session.cancel(member_id)
    finally:
        session.half_close()
