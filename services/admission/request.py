"""A request as its caller wrote it, as plain values; the message is headrace.inference.v1.GenerateRequest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.lane.work import Grammar, Tier


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a chat."""

    role: str
    """"system", "user" or "assistant"; "" when the caller named none."""
    content: str


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """How to choose tokens; None means that the caller left it open."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    ignore_end: bool = False
    stop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A request before anything is decided."""

    model: str
    chat: Sequence[Turn] | None = None
    """Either this or `prompt`; both None when the caller gave neither."""
    prompt: str | None = None
    sampling: SamplingRequest = field(default_factory=SamplingRequest)
    grammar: Grammar | None = None
    log_probs: bool = False
    tier: Tier | None = None
    request_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    text: bool = True
    """Whether responses carry text."""
    token_ids: bool = False
    """Whether responses carry token ids."""
    timeout_s: float | None = None
    resumed: Sequence[int] = ()
    resumed_version: str = ""
    """The version that made them; any may go on when it is empty."""
    contract: str = ""
    requires: Sequence[str] = ()
    """Capabilities that the model must have, beyond what the request itself uses."""
    traceparent: str = ""
    """Of the server span."""
    call_deadline: float | None = None
    """Unix seconds; of the gRPC call."""
    in_session: bool = False
    """Whether it came through Session; else through Generate."""
