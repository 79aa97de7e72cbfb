"""The chunks of a streamed answer, of both of OpenAI's APIs and their relatives. Pure."""

import json
from typing import Any

import msgspec

DONE = b"[DONE]"
"""The last event of a stream."""


class Entry(msgspec.Struct):
    """A token's log-probability, in the chat's form."""

    token: str = ""
    logprob: float | None = None


class LogProbs(msgspec.Struct):
    """Either form: the chat's, or the older one of completions."""

    content: list[Entry] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None

    def pairs(self) -> list[tuple[str, float | None]]:
        """Text and log-probability of each token."""
        if self.content is not None:
            return [(entry.token, entry.logprob) for entry in self.content]
        return list(zip(self.tokens or (), self.token_logprobs or (), strict=False))


class Delta(msgspec.Struct):
    """What is new in a chat's answer. Thoughts come in other fields, and are no part of the answer."""

    content: str | None = None


class Choice(msgspec.Struct):
    """One answer; only one is asked for."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: LogProbs | None = None
    token_ids: list[int] | None = None
    """vLLM's, with return_token_ids."""

    @property
    def new_text(self) -> str:
        """Of whichever API."""
        return self.text or (self.delta.content if self.delta is not None else "") or ""


class Details(msgspec.Struct):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class Tokens(msgspec.Struct):
    """The usage of a request so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Chunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] = []
    usage: Tokens | None = None
    error: Any = None


class ChunkInvalid(Exception):
    """An event that is no chunk."""


_decode = msgspec.json.Decoder(Chunk).decode


def decode(data: bytes) -> Chunk:
    """Reads an event's data. Raises ChunkInvalid."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # halves of surrogate pairs, which msgspec takes for a fault
        return msgspec.convert(json.loads(data), Chunk)
    except (ValueError, RecursionError):
        raise ChunkInvalid from None
