"""Messages of headrace.inference.v1 as the plain values of this service, and back."""

from typing import Any

from headrace.inference.v1 import inference_pb2
from libs.lane.wire import ROLES
from libs.lane.work import Grammar, Tier
from services.admission.generation import Chunk, Finish
from services.admission.request import Request, SamplingRequest, Turn

_FORMS = {
    inference_pb2.OUTPUT_FORM_UNSPECIFIED: (True, False),
    inference_pb2.OUTPUT_FORM_TEXT: (True, False),
    inference_pb2.OUTPUT_FORM_TOKEN_IDS: (False, True),
    inference_pb2.OUTPUT_FORM_TEXT_AND_TOKEN_IDS: (True, True),
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
    )
    if chunk.finish is not None:
        response.finish.CopyFrom(finish_to_proto(chunk.finish))
    return response


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
    message.timings.queued.FromMicroseconds(int(finish.queued_s * 1e6))
    message.timings.first_token.FromMicroseconds(int(finish.first_token_s * 1e6))
    message.timings.total.FromMicroseconds(int(finish.total_s * 1e6))
    return message


def turns(chat: inference_pb2.Chat) -> list[Turn]:
    """The turns of a chat as plain values."""
    return [Turn(ROLES.get(turn.role, ""), turn.content) for turn in chat.messages]
