"""Between the SDK's values and the messages of headrace.inference.v1. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from google.protobuf import json_format

from headrace.inference.v1 import inference_pb2 as pb

from .options import GenerateOptions
from .values import Degradation, Finish, Model, Timings, ToolStep, Usage

Role = Literal["system", "user", "assistant"]
Chat = Sequence[tuple[Role, str]]
"""Turns, oldest first: who speaks, and what is said."""

ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
TIERS = {"interactive": pb.TIER_INTERACTIVE, "async": pb.TIER_ASYNC}
FORMS = {
    "text": pb.OUTPUT_FORM_TEXT,
    "token_ids": pb.OUTPUT_FORM_TOKEN_IDS,
    "both": pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS,
}
SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "seed",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
STATES: Mapping[int, Literal["waiting", "running", "done", "failed"]] = {
    pb.TOOL_STATE_WAITING: "waiting",
    pb.TOOL_STATE_RUNNING: "running",
    pb.TOOL_STATE_DONE: "done",
    pb.TOOL_STATE_FAILED: "failed",
}
GRAMMARS = ("json_schema", "regex", "ebnf")

Asks = TypeVar("Asks", pb.GenerateRequest, pb.CountTokensRequest)


def with_input(message: Asks, chat: Chat | None, prompt: str | None) -> Asks:
    """Sets the message's input. Raises ValueError unless exactly one is given, and for an unknown role."""
    if (chat is None) == (prompt is None):
        raise ValueError("give either chat or prompt")
    if prompt is not None:
        message.prompt = prompt
        return message
    message.chat.SetInParent()
    for role, content in chat or ():
        if role not in ROLES:
            raise ValueError(f"no such role: {role!r}; there are {', '.join(ROLES)}")
        message.chat.messages.add(role=ROLES[role], content=content)
    return message


def generate_request(
    model: str, chat: Chat | None, prompt: str | None, options: GenerateOptions, *, resumable: bool
) -> pb.GenerateRequest:
    """The request without a timeout. A resumable one asks for token ids, too."""
    form = FORMS[options.output]
    message = pb.GenerateRequest(
        model=model,
        sampling=pb.Sampling(stop=options.stop, ignore_end=options.ignore_end),
        log_probs=options.log_probs,
        tier=TIERS[options.tier] if options.tier is not None else pb.TIER_UNSPECIFIED,
        request_id=options.request_id or "",
        tags=options.tags,
        contract=options.contract or "",
        requires=options.requires,
        output_form=pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS if resumable and options.output == "text" else form,
    )
    for name in SAMPLING:
        if (value := getattr(options, name)) is not None:
            setattr(message.sampling, name, value)
    for name in GRAMMARS:
        if (grammar := getattr(options, name)) is not None:
            setattr(message.grammar, name, grammar if isinstance(grammar, str) else json.dumps(grammar))
    return with_input(message, chat, prompt)


def finish(message: pb.Finish) -> Finish:
    """How an answer ended."""
    usage, timings = message.usage, message.timings
    return Finish(
        reason="length" if message.reason == pb.FINISH_REASON_LENGTH else "stop",
        stop=message.stop or None,
        usage=Usage(usage.prompt_tokens, usage.cached_tokens, usage.output_tokens),
        timings=Timings(
            queued=timings.queued.ToMicroseconds() / 1e6,
            first_token=timings.first_token.ToMicroseconds() / 1e6,
            total=timings.total.ToMicroseconds() / 1e6,
        ),
        model=message.model,
        degradation=(
            Degradation(message.degradation.level, tuple(message.degradation.rungs))
            if message.HasField("degradation")
            else None
        ),
        tried=tuple(message.tried),
    )


def tool_step(message: pb.ToolStep) -> ToolStep:
    """How far a tool call is."""
    state = STATES.get(message.state, "running")
    return ToolStep(message.step, message.tool, message.arguments, state, message.result, message.approval_id)


def model(message: pb.ModelInfo) -> Model:
    """A model of a list."""
    return Model(
        name=message.name,
        context_tokens=message.context_tokens,
        capabilities=frozenset(message.capabilities),
        ready=message.ready,
        labels=json_format.MessageToDict(message.labels),
    )
