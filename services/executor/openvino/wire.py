"""What runner and child say to each other: length-prefixed msgpack over a socket pair.

Up go Load (once, first), then Submit and Cancel; down come Ready or LoadRefused, then one Stepped per engine
step. A child that cannot go on sends Broken and exits. The socket's end, from either side, ends the other.
"""

import struct

import msgspec

HEAD = struct.Struct("<I")
"""The length of the message behind it, in bytes."""

MOST_BYTES = 64 * 1024 * 1024
"""A longer message is a bug, not a message."""


class Load(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """What to load, and how."""

    path: str
    model: str
    """The catalogue's name: part of the hashes that the child computes itself."""
    vocabulary: int
    blocks: int
    slots: int
    step_tokens: int
    eos_ids: tuple[int, ...]
    threads: int
    """0 means as many as OpenVINO sees fit."""
    niceness: int


class Submit(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """A work that the runner has checked. Numbers are what the engine is to use, defaults filled in."""

    work_id: int
    prompt: list[int]
    resumed: list[int]
    max_tokens: int
    """Of the whole answer, resumed tokens included; fits into the context."""
    deadline: float
    temperature: float
    """0 means greedy."""
    top_p: float
    top_k: int
    """0 means all."""
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    ignore_end: bool
    log_probs: bool
    grammar_form: str
    """"json_schema", "regex", "ebnf", or "" for none."""
    grammar_text: str
    hashes: list[int] | None
    """Of the prompt's full blocks; None lets the child compute them, an empty list keeps them unnamed."""


class Cancel(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Stop a work. Unknown ids are ignored."""

    work_id: int


class Ready(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The model is loaded and has answered."""

    block_tokens: int
    """As measured."""


class LoadRefused(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The model could not be loaded."""

    reason: str


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How a work ended: `how` is "stop", "length", or the reason of an error of libs.errors."""

    work_id: int
    how: str
    message: str
    output_tokens: int
    cached_tokens: int


class Stepped(msgspec.Struct, tag=True, array_like=True):
    """One engine step; the fields are those of services.executor.engine.Step."""

    work_ids: list[int] = msgspec.field(default_factory=list)
    offsets: list[int] = msgspec.field(default_factory=list)
    counts: list[int] = msgspec.field(default_factory=list)
    token_ids: list[int] = msgspec.field(default_factory=list)
    log_probs: list[float] = msgspec.field(default_factory=list)
    started: list[tuple[int, int]] = msgspec.field(default_factory=list)
    ended: list[Ended] = msgspec.field(default_factory=list)
    events: list[tuple[str, list[int]]] = msgspec.field(default_factory=list)
    stats: tuple[int, int, int, int] = (0, 0, 0, 0)
    """running, waiting, blocks used, blocks cached"""


class Broken(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The child gives up; the last message."""

    reason: str


class Try(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """To the grammar probe: can the engine follow this grammar?"""

    form: str
    text: str


class Verdict(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """From the grammar probe, in the order of the questions: what is wrong with the grammar, or nothing. One
    comes unasked when the probe is ready."""

    fault: str


Up = Load | Submit | Cancel
Down = Ready | LoadRefused | Stepped | Broken

_encoder = msgspec.msgpack.Encoder()
decode_up = msgspec.msgpack.Decoder(Up).decode
decode_down = msgspec.msgpack.Decoder(Down).decode
decode_try = msgspec.msgpack.Decoder(Try).decode
decode_verdict = msgspec.msgpack.Decoder(Verdict).decode


def encode(message: Up | Down | Try | Verdict) -> bytes:
    """A message with its length in front. NaN log-probabilities survive."""
    body = _encoder.encode(message)
    return HEAD.pack(len(body)) + body
