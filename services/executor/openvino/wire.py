"""What only the OpenVINO engine and its children say to each other, beside services.executor.child.wire."""

import msgspec

from services.executor.child.wire import Cancel, Check, LoadAdapter, UnloadAdapter


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
    quantum_s: float = 0.1
    """See services.executor.openvino.turns."""
    lookup_tokens: int = 0
    """Tokens that prompt lookup proposes in each step; 0 for none."""
    lookup_ngram: int = 0
    places: dict[str, tuple[int, int]] = {}
    """See libs.models.prepared.Facts."""


class LoadLora(LoadAdapter, tag=True, frozen=True, array_like=True):
    """Make an adapter usable; answered by AdapterDone."""

    shares_prefix: bool = False
    """The catalogue says that its keys and values are the base's."""


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
    adapter: str = ""
    salt: str = ""


class Try(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """To the grammar probe: can the engine follow this grammar?"""

    form: str
    text: str


class Verdict(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """From the grammar probe, in the order of the questions: what is wrong with the grammar, or nothing. One
    comes unasked when the probe is ready."""

    fault: str


Up = Load | Submit | Cancel | LoadLora | UnloadAdapter | Check

decode_up = msgspec.msgpack.Decoder(Up).decode
decode_try = msgspec.msgpack.Decoder(Try).decode
decode_verdict = msgspec.msgpack.Decoder(Verdict).decode
