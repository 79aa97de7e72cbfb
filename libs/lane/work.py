"""What travels on a lane, as plain values: what every stage decides on.

Structs rather than frozen dataclasses, as whatever is made for each request: one is made, or made anew with a change,
in a sixth of the time. `libs.lane.wire` converts them to and from the messages of `headrace.lane.v1`.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Literal

import msgspec

from libs.errors import HeadraceError

Tokens = Sequence[int]
"""Token ids. Lists and tuples alike; whoever receives one does not change it."""


class Tier(IntEnum):
    """Class of service; the numbers are those of headrace.inference.v1.Tier and order the queue."""

    INTERACTIVE = 1
    ASYNC = 2


class FinishReason(IntEnum):
    """Why a work ended well; the numbers are those of headrace.inference.v1.FinishReason."""

    STOP = 1
    LENGTH = 2


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen. None means the model's default."""

    max_tokens: int
    """Tokens of the whole answer, resumed ones included."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    ignore_end: bool = False


class Grammar(msgspec.Struct, frozen=True):
    """The shape of an answer."""

    form: Literal["json_schema", "regex", "ebnf"]
    text: str


class Asked(msgspec.Struct, frozen=True):
    """What a router chooses by, of a request that asked for a route; the message is headrace.lane.v1.Asked."""

    alias: str
    tokens_of: str
    """The model whose tokenizer made the prompt."""
    chosen: str = ""
    """The router's choice, after a Rerouted."""
    tried: Sequence[str] = ()
    """Models that were tried."""
    tags: Mapping[str, str] = {}
    capabilities: Sequence[str] = ()
    text: str = ""
    """What the user said last, where the route looks at it."""
    no_extras: bool = False
    """Nothing is to be done twice or ahead."""
    smaller: bool = False
    """It goes to the route's small model."""


class Work(msgspec.Struct, frozen=True):
    """One generation on its way through the mesh. Its number on a lane is not part of it."""

    request_id: str
    tenant: str
    tier: Tier
    model: str
    prompt: Tokens
    sampling: Sampling
    deadline: float
    """Unix seconds. Past it no stage works on this any more."""
    pool: str = ""
    """"name@version" of the base; set by the router. With resumed tokens it goes there and nowhere else."""
    resumed: Tokens = ()
    """Tokens of the answer that have passed on already; the answer goes on behind them."""
    block_hashes: Sequence[int] = ()
    """Chained hashes of the prompt's full blocks."""
    block_tokens: int = 0
    grammar: Grammar | None = None
    log_probs: bool = False
    traceparent: str = ""
    """W3C trace context of the span in front."""
    adapter: str = ""
    """"name@version" of the LoRA adapter; set by the router."""
    salt: str = ""
    """Keeps its keys and values apart from those of other salts; part of `block_hashes`."""
    chat: Sequence[tuple[str, str]] = ()
    """Role and content of each turn; only for models whose engine takes chats."""
    weight: float = 1.0
    """The tenant's share of what is scarce, against those of other tenants."""
    asked: Asked | None = None
    """What the router chooses by; None where a model was named itself."""


class Outcome(msgspec.Struct, frozen=True):
    """How a work ended: well, with a finish reason, or with an error; never both, never neither."""

    finish: FinishReason | None = None
    error: HeadraceError | None = None
    output_tokens: int = 0
    """Tokens of the answer, resumed ones included."""
    cached_tokens: int = 0
    """Prompt tokens that the engine did not have to compute."""
    queued_s: float = 0.0
    """Seconds in the batcher's queue."""
    executor: str = ""

    def __post_init__(self) -> None:
        if (self.finish is None) == (self.error is None):
            raise ValueError("an outcome is either a finish reason or an error")


NAN = float("nan")
"""The log-probability of a token whose work did not ask for any."""
POOL_GONE = "pool_gone"
"""Set in the metadata of the NoExecutor with which a work comes back whose pool was withdrawn."""


class Note(msgspec.Struct, frozen=True):
    """Something about a work that goes on; what is empty is nothing new."""

    pool: str = ""
    """The pool that the router chose."""
    waiting: str = ""
    """Why it cannot run yet, for a person."""
    restart: bool = False
    """The answer begins anew, at offset 0: all tokens before are void."""
    tried: Sequence[str] = ()
    """Models that were tried in front of the one that answers now."""


class Decision(msgspec.Struct, frozen=True):
    """What a stage would do with a work, and why."""

    stage: str
    choice: str
    reason: str


class QueueState(msgspec.Struct, frozen=True):
    """The works of one pool and tier that a stage holds."""

    instance: str
    pool: str
    tier: Tier
    waiting: int
    waiting_tokens: int
    running: int
    oldest_waiting_ms: int
