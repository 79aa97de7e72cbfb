"""What a runner and its child say to each other: length-prefixed msgpack over a socket pair.

Up goes the engine's own Load (once, first), then Start, Cancel and what is asked about adapters; down come
Ready or LoadRefused, then one Stepped per engine step. A child that cannot go on sends Broken and exits. The
socket's end, from either side, ends the other.

Imports nothing that another environment may lack but msgspec: an engine's child may run in one.
"""

import struct

import msgspec

from libs.lane.work import Work
from services.executor.engine import Capabilities, Capacity

HEAD = struct.Struct("<I")
"""The length of the message behind it, in bytes."""

MOST_BYTES = 64 * 1024 * 1024
"""A longer message is a bug, not a message."""


class Start(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """A work to begin."""

    work_id: int
    work: Work


class Cancel(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Stop a work. Unknown ids are ignored."""

    work_id: int


class LoadAdapter(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Make an adapter usable; answered by AdapterDone."""

    adapter: str
    """"name@version"."""
    path: str
    """Its folder, in the PEFT layout."""


class UnloadAdapter(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Forget an adapter; answered by AdapterDone."""

    adapter: str


class Check(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Ask the model a question; answered by CheckDone."""


class Ready(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The model is loaded and has answered."""

    capacity: Capacity
    capabilities: Capabilities


class LoadRefused(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The model could not be loaded."""

    reason: str


class AdapterDone(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """What was asked about an adapter is done, or has failed."""

    adapter: str
    fault: str
    """Empty when all is well."""


class CheckDone(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The model has answered, or has not."""

    fault: str
    """Empty when all is well."""


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How a work ended: `how` is "stop", "length", or the reason of an error of libs.errors."""

    work_id: int
    how: str
    message: str
    output_tokens: int
    cached_tokens: int
    violations: list[tuple[str, str]] = []
    """Of a request that is wrong: field, and what is wrong with it."""


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
    swaps: list[float] = msgspec.field(default_factory=list)


class Broken(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """The child gives up; the last message."""

    reason: str


Up = Start | Cancel | LoadAdapter | UnloadAdapter | Check
Down = Ready | LoadRefused | Stepped | AdapterDone | CheckDone | Broken

_encoder = msgspec.msgpack.Encoder()
decode_up = msgspec.msgpack.Decoder(Up).decode
decode_down = msgspec.msgpack.Decoder(Down).decode


def encode(message: msgspec.Struct) -> bytes:
    """A message with its length in front. NaN log-probabilities survive."""
    body = _encoder.encode(message)
    return HEAD.pack(len(body)) + body
