"""Messages of headrace.inference.v1 as the plain values of this service, and back."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from headrace.inference.v1 import inference_pb2
from libs.lane.wire import ROLES
from libs.lane.work import Grammar, Tier
from services.admission.generation import Chunk, Finish, ToolStep, parts
from services.admission.request import Request, SamplingRequest, Turn

DEGRADATION = "headrace-degradation"
"""The trailer of a degraded answer."""

_FORMS = {
    inference_pb2.OUTPUT_FORM_UNSPECIFIED: (True, False),
    inference_pb2.OUTPUT_FORM_TEXT: (True, False),
    inference_pb2.OUTPUT_FORM_TOKEN_IDS: (False, True),
    inference_pb2.OUTPUT_FORM_TEXT_AND_TOKEN_IDS: (True, True),
}
_TOOL_STATES = {
    "waiting": inference_pb2.TOOL_STATE_WAITING,
    "running": inference_pb2.TOOL_STATE_RUNNING,
    "done": inference_pb2.TOOL_STATE_DONE,
    "failed": inference_pb2.TOOL_STATE_FAILED,
}
_OPTIONAL_SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip


def request_from_proto(
    message: inference_pb2.GenerateRequest, *, traceparent: str, call_deadline: float | None, in_session: bool = False
) -> Request:
    """A request as its caller wrote it."""
    text, token_ids = _FORMS.get(message.output_form, (True, False))
    form = message.grammar.WhichOneof("form")
    has = message.sampling.HasField
    optional: dict[str, Any] = {
        name: getattr(message.sampling, name)
        for name in _OPTIONAL_SAMPLING
        if has(name)  # type: ignore[arg-type]
    }
    return Request(
        model=message.model,
        chat=turns(message.chat) if message.HasField("chat") else None,
        prompt=message.prompt if message.HasField("prompt") else None,
        sampling=SamplingRequest(ignore_end=message.sampling.ignore_end, stop=tuple(message.sampling.stop), **optional),
        grammar=Grammar(form, getattr(message.grammar, form)) if form else None,
        log_probs=message.log_probs,
        tier=Tier(message.tier) if message.tier in (1, 2) else None,
        request_id=message.request_id,
        tags=dict(message.tags),
        text=text,
        token_ids=token_ids,
        timeout_s=message.timeout.ToMicroseconds() / 1e6 if message.HasField("timeout") else None,
        resumed=list(message.resumed_token_ids),
        resumed_version=message.resumed_model_version,
        traceparent=traceparent,
        call_deadline=call_deadline,
        in_session=in_session,
        contract=message.contract,
        requires=tuple(message.requires),
    )


def count_request_from_proto(message: inference_pb2.CountTokensRequest) -> Request:
    """A request that is only to be counted."""
    return Request(
        model=message.model,
        chat=turns(message.chat) if message.HasField("chat") else None,
        prompt=message.prompt if message.HasField("prompt") else None,
    )


def chunk_to_proto(chunk: Chunk, request_id: str) -> inference_pb2.GenerateResponse:
    """A chunk that is no error; `request_id` on the first one only."""
    response = inference_pb2.GenerateResponse(
        request_id=request_id,
        text=chunk.text,
        token_ids=chunk.token_ids,
        log_probs=chunk.log_probs,
        model_version=chunk.version,
        waiting=chunk.waiting,
        restart=chunk.restart,
    )
    if chunk.finish is not None:
        response.finish.CopyFrom(finish_to_proto(chunk.finish))
    return response


def responses(chunk: Chunk, request_id: str) -> Iterator[inference_pb2.GenerateResponse]:
    """A chunk as the messages of a stream, without its error; `request_id` on the first one only."""
    for part in parts(chunk):
        for step in part.tool_steps:
            yield inference_pb2.GenerateResponse(request_id=request_id, tool_step=tool_step_to_proto(step))
            request_id = ""
        # Of parts, only one with tool steps or an error may have nothing else to say.
        if not (part.tool_steps or part.error) or replace(part, tool_steps=[], error=None) != Chunk():
            yield chunk_to_proto(part, request_id)
            request_id = ""


def notes(chunk: Chunk, member: int) -> Iterator[inference_pb2.SessionNote]:
    """What a session tells of a part of an answer besides its text and tokens."""
    if chunk.version or chunk.waiting or chunk.restart:
        yield inference_pb2.SessionNote(
            id=member, model_version=chunk.version, waiting=chunk.waiting, restart=chunk.restart
        )
    for step in chunk.tool_steps:
        yield inference_pb2.SessionNote(id=member, tool_step=tool_step_to_proto(step))


def degradation_trailer(finish: Finish) -> Sequence[tuple[str, str]]:
    """What was given up, as metadata; nothing when nothing was."""
    if not finish.degradation.level:
        return ()
    told = f"{finish.degradation.level}; {', '.join(finish.degradation.rungs)}"
    # Names of rungs are the operator's: of what metadata cannot carry only the place remains.
    return ((DEGRADATION, "".join(c if " " <= c <= "~" else "?" for c in told)),)


def finish_to_proto(finish: Finish) -> inference_pb2.Finish:
    """How an answer ended."""
    message = inference_pb2.Finish(
        reason=finish.reason.value,  # type: ignore[arg-type]  # the same numbers
        stop=finish.stop,
        model=finish.model,
        usage=inference_pb2.Usage(
            prompt_tokens=finish.prompt_tokens,
            cached_tokens=finish.cached_tokens,
            output_tokens=finish.output_tokens,
        ),
    )
    message.tried.extend(finish.tried)
    if finish.degradation.level:
        message.degradation.level = finish.degradation.level
        message.degradation.rungs.extend(finish.degradation.rungs)
    message.timings.queued.FromMicroseconds(int(finish.queued_s * 1e6))
    message.timings.first_token.FromMicroseconds(int(finish.first_token_s * 1e6))
    message.timings.total.FromMicroseconds(int(finish.total_s * 1e6))
    return message


def tool_step_to_proto(step: ToolStep) -> inference_pb2.ToolStep:
    """How far a tool call is."""
    return inference_pb2.ToolStep(
        step=step.step,
        tool=step.tool,
        arguments=step.arguments,
        state=_TOOL_STATES[step.state],
        result=step.result,
        approval_id=step.approval_id,
    )


def turns(chat: inference_pb2.Chat) -> list[Turn]:
    """The turns of a chat as plain values."""
    return [Turn(ROLES.get(turn.role, ""), turn.content) for turn in chat.messages]
