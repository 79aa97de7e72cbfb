"""Messages of headrace.inference.v1 as the plain values of this service, and back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

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


def request_from_proto(
    message: inference_pb2.GenerateRequest, *, traceparent: str, call_deadline: float | None, in_session: bool = False
) -> Request:
    """A request as its caller wrote it."""
    # Of fifteen fields four are set, and asking for each costs more than for those that are.
    given: dict[str, Any] = {"model": "", "output_form": inference_pb2.OUTPUT_FORM_UNSPECIFIED}
    for field, value in message.ListFields():
        name, read = _FIELDS[field.name]
        given[name] = value if read is None else read(value)
    text, token_ids = _FORMS.get(given.pop("output_form"), (True, False))
    return Request(
        text=text,
        token_ids=token_ids,
        traceparent=traceparent,
        call_deadline=call_deadline,
        in_session=in_session,
        **given,
    )


def _sampling(message: inference_pb2.Sampling) -> SamplingRequest:
    """What is set; the fields of both have the same names."""
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    return SamplingRequest(**given)


def _grammar(message: inference_pb2.Grammar) -> Grammar | None:
    form = message.WhichOneof("form")
    return Grammar(form, getattr(message, form)) if form else None


def count_request_from_proto(message: inference_pb2.CountTokensRequest) -> Request:
    """A request that is only to be counted."""
    return Request(
        model=message.model,
        chat=turns(message.chat) if message.HasField("chat") else None,
        prompt=message.prompt if message.HasField("prompt") else None,
    )


def chunk_to_proto(chunk: Chunk, request_id: str) -> inference_pb2.GenerateResponse:
    """A chunk that is no error; `request_id` on the first one only."""
    # Most have nothing but their text, and naming the others here would take three times as long.
    if chunk.finish is None:
        response = inference_pb2.GenerateResponse(text=chunk.text)
    else:
        response = inference_pb2.GenerateResponse(text=chunk.text, finish=finish_fields(chunk.finish))
    if request_id:
        response.request_id = request_id
    if chunk.token_ids:
        response.token_ids.extend(chunk.token_ids)
    if chunk.log_probs:
        response.log_probs.extend(chunk.log_probs)
    if chunk.version:
        response.model_version = chunk.version
    if chunk.waiting:
        response.waiting = chunk.waiting
    if chunk.restart:
        response.restart = True
    return response


def responses(chunk: Chunk, request_id: str) -> list[inference_pb2.GenerateResponse]:
    """A chunk as the messages of a stream, without its error; `request_id` on the first one only."""
    if not (chunk.restart or chunk.tool_steps or chunk.error):  # almost all
        return [chunk_to_proto(chunk, request_id)]
    told: list[inference_pb2.GenerateResponse] = []
    for part in parts(chunk):
        told += [inference_pb2.GenerateResponse(tool_step=tool_step_to_proto(step)) for step in part.tool_steps]
        # Of parts, only one with tool steps or an error may have nothing else to say.
        if not (part.tool_steps or part.error) or replace(part, tool_steps=[], error=None) != Chunk():
            told.append(chunk_to_proto(part, ""))
    if told and request_id:
        told[0].request_id = request_id
    return told


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


def finish_fields(finish: Finish) -> Any:
    """How an answer ended, as the fields of a Finish: within the message that has it, given when that is made.

    Setting them one by one takes longer, and a message that is put into another is copied.
    """
    fields: dict[str, Any] = {
        "reason": finish.reason.value,
        "stop": finish.stop,
        "model": finish.model,
        "usage": {
            "prompt_tokens": finish.prompt_tokens,
            "cached_tokens": finish.cached_tokens,
            "output_tokens": finish.output_tokens,
        },
        "timings": {
            "queued": _duration(finish.queued_s),
            "first_token": _duration(finish.first_token_s),
            "total": _duration(finish.total_s),
        },
        "tried": finish.tried,
    }
    if finish.degradation.level:
        fields["degradation"] = {"level": finish.degradation.level, "rungs": finish.degradation.rungs}
    return fields


def _duration(seconds: float) -> dict[str, int]:
    whole, micros = divmod(int(seconds * 1e6), 1_000_000)
    return {"seconds": whole, "nanos": micros * 1000}


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


_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any] | None]] = {
    "model": ("model", None),
    "chat": ("chat", turns),
    "prompt": ("prompt", None),
    "sampling": ("sampling", _sampling),
    "grammar": ("grammar", _grammar),
    "log_probs": ("log_probs", None),
    "tier": ("tier", lambda tier: Tier(tier) if tier in (1, 2) else None),
    "request_id": ("request_id", None),
    "tags": ("tags", dict),
    "output_form": ("output_form", None),
    "timeout": ("timeout_s", lambda timeout: timeout.ToMicroseconds() / 1e6),
    "resumed_token_ids": ("resumed", list),
    "resumed_model_version": ("resumed_version", None),
    "contract": ("contract", None),
    "requires": ("requires", tuple),
}
"""Fields of a GenerateRequest: what they are called here, and how they are read."""
