"""What a caller gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation used, in tokens."""

    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Of these, tokens that the engine did not have to compute."""
    output_tokens: int
    """Tokens generated."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds. After a re-send: of the last try."""

    queued: float
    """In the mesh's queue."""
    first_token: float
    """From the request's arrival to its first token."""
    total: float
    """From its arrival to its end."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """What the mesh gave up for an answer, because it was saturated."""

    level: int
    """Rungs of the ladder that were in force."""
    rungs: tuple[str, ...]
    """Their names: "short-answers"."""


@dataclass(frozen=True, slots=True)
class ToolStep:
    """A tool call within an answer, told as it goes on."""

    step: int
    """Counts the answers of the model, from 1."""
    tool: str
    """The tool."""
    arguments: str
    """What it is called with, as JSON text."""
    state: Literal["waiting", "running", "done", "failed"]
    """"waiting": for a person; see `HeadraceClient.approve`. A call that failed is told to the model."""
    result: str = ""
    """What it said, or why it failed."""
    approval_id: str = ""
    """What `approve` is to be called with, while it waits."""


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended."""

    reason: Literal["stop", "length"]
    """"stop": the model was done, or a stop string came. "length": no more tokens were allowed."""
    stop: str | None
    """The stop string, if one ended it."""
    usage: Usage
    """What was used."""
    timings: Timings
    """Where the time went."""
    model: str
    """The model that answered, where an alias or a fallback chose."""
    degradation: Degradation | None = None
    """What was given up; None when nothing was."""
    tried: tuple[str, ...] = ()
    """Models that were tried in front of it: fallbacks, cascades."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer: what came since the last one."""

    text: str = ""
    """New text, never a part of a character; may be empty."""
    token_ids: tuple[int, ...] = ()
    """New token ids; see GenerateOptions.output."""
    log_probs: tuple[float, ...] = ()
    """One per new token, if asked for."""
    finish: Finish | None = None
    """On the last chunk, and only there."""
    waiting: str = ""
    """Why the request cannot run yet ("smollm2 is being loaded"); such a chunk carries nothing else."""
    restart: bool = False
    """The answer begins anew: all text and tokens before are void. Such a chunk carries nothing else."""
    tool_step: ToolStep | None = None
    """What a tool of the contract does. Such a chunk carries nothing else."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    """All of it."""
    token_ids: tuple[int, ...]
    """All of them; see GenerateOptions.output."""
    log_probs: tuple[float, ...]
    """One per token, if asked for."""
    finish: Finish
    """How it ended: reason, usage, timings, model."""
    request_id: str
    """Names the request in traces and logs."""
    tool_steps: tuple[ToolStep, ...] = ()
    """What the contract's tools did: each call comes several times, as it goes on."""

    @property
    def usage(self) -> Usage:
        """What was used."""
        return self.finish.usage

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self.finish.timings


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The length of a prompt."""

    tokens: int
    """Tokens of the prompt, template included."""
    context_tokens: int
    """Tokens that prompt and answer may have together."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the caller may use."""

    name: str
    """What to give to `generate`."""
    context_tokens: int
    """Tokens that prompt and answer may have together."""
    capabilities: frozenset[str]
    """Of "chat", "grammar", "log_probs"."""
    ready: bool
    """Whether it can answer now."""
    labels: Mapping[str, Any]
    """What else the catalogue says."""
