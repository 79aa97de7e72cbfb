"""What a drill is asked to do, what it sees, and what it finds. Pure.

Times of a drill are seconds since it began, but for `Result.began`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

VERSION = 1
"""Of the document; grows with every change that a reader would notice."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the ladder that was in force during the drill."""

    name: str
    at: float
    step: str
    """The field of policy.Rung that is set: "clamp_output_tokens", "reject"…"""
    amount: int = 0
    """Tokens, of a clamp."""

    @property
    def does(self) -> str:
        """What is done, in words."""
        return WORDS[self.step].format(self.amount)


WORDS = {
    "clamp_output_tokens": "answers of at most {} tokens",
    "smaller_model": "requests of a route go to its small model",
    "tools_off": "no tools",
    "no_extras": "no hedging, cascades or shadows",
    "defer": "interactive requests are treated as async",
    "reject": "refused at once",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a drill must not exceed."""

    requests: int = 20_000
    """Sent at most."""
    seconds: float = 120.0
    """Of load at most."""
    per_s: float = 400.0
    """Requests a second at most."""
    in_flight: int = 2000
    """Requests without an end, at most; what would be more is not sent."""
    error_share: float = 0.01
    """Of the requests that ended, those that failed otherwise than by being refused for want of room."""
    others_refused: int = 0
    """Requests of other tenants that may be refused meanwhile."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    model: str
    """A model or a route."""
    base: str
    """The model whose ladder is meant."""
    small: str
    """What the route falls back to when a rung says smaller_model; "" where that cannot be seen."""
    tier: str
    """"interactive" or "async"."""
    ladder: Sequence[Rung]
    """As it is in force during the drill."""
    recover_s: float
    scale: float = 1.0
    """What the saturations of the policy's rungs were multiplied by, for the drill."""
    first_per_s: float = 1.0
    growth: float = 1.25
    """The load grows by this each second while the next rung is not reached."""
    hold_s: float = 3.0
    """It stays as it is for so long at each rung."""
    words: int = 100
    """Of each prompt."""
    tokens: int = 256
    """Of each answer."""
    answer_s: float = 60.0
    """For which an answer is waited for: long enough for one that the tier lets wait for its first token."""
    bounds: Bounds = Bounds()

    @property
    def probe_tokens(self) -> int:
        """What a probe asks for: more than any rung leaves it."""
        return max((rung.amount for rung in self.ladder), default=0) + 32


@dataclass(frozen=True, slots=True)
class Sample:
    """The ladder at one moment, as OperationsService.ListDegradations has it."""

    at: float
    level: int = 0
    saturation: float = 0.0
    wait: float = 0.0
    blocks: float = 0.0
    refused: float = 0.0
    deferred: float = 0.0
    """The wait of async works of the same model."""
    per_s: float = 0.0
    """Requests a second that are being sent."""


class Kind(Enum):
    """What a request is for."""

    LOAD = "load"
    PROBE = "probe"
    """Asks for more than the rungs leave it."""
    SPARED = "spared"
    """The same, of a protected tenant."""


@dataclass(slots=True)
class Sent:
    """One request."""

    kind: Kind
    at: float
    level: int
    """That was seen when it was sent."""
    first: float = -1.0
    ended: float = -1.0
    error: str = ""
    """The reason of its error; "" when it was answered, or has no end."""
    message: str = ""
    retry_s: float = -1.0
    """Of RetryInfo; -1 when there was none."""
    told: int = -1
    """The level in the error's metadata; -1 when there was none."""
    tokens: int = 0
    reason: str = ""
    """"stop" or "length"."""
    model: str = ""
    rungs: Sequence[str] = ()
    """That the answer says were in force."""

    @property
    def answered(self) -> bool:
        """Whether it ended well."""
        return self.ended >= 0 and not self.error

    @property
    def refused(self) -> bool:
        """Whether there was no room for it: that is what a drill is for."""
        return self.error in ("OVERLOADED", "DEADLINE_PASSED")


class Verdict(Enum):
    """Of a check."""

    GO = "go"
    NO_GO = "no-go"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    evidence: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class RungFound:
    """What a drill found about one rung."""

    rung: Rung
    reached_s: float | None
    """None: never."""
    saturation: float | None
    """When it was reached."""
    per_s: float | None
    """Requests a second that it took."""
    check: Check


@dataclass(frozen=True, slots=True)
class Second:
    """What became of the requests that were sent within one second."""

    at: float
    """Its beginning."""
    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    first_p50_s: float | None = None
    """To the first token, of those that were answered."""
    first_p95_s: float | None = None
    probe_tokens: float | None = None
    """Of the answers to probes, on average."""
    spared_tokens: float | None = None
    """Of those of the protected tenant."""


@dataclass(frozen=True, slots=True)
class Result:
    """The document that a drill leaves."""

    version: int
    began: float
    """Unix seconds."""
    seconds: float
    command: str
    order: Order
    stopped: str
    """Why the load ended."""
    aborted: bool
    """Whether that was before the last rung."""
    rungs: Sequence[RungFound]
    checks: Sequence[Check]
    """Of the ladder as a whole."""
    sent: int
    answered: int
    refused: int
    failed: int
    samples: Sequence[Sample] = field(default_factory=list)
    per_second: Sequence[Second] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every rung did what it says, and the rest was well."""
        return all(check.verdict is Verdict.GO for check in [*(each.check for each in self.rungs), *self.checks])


def encode(result: Result) -> bytes:
    """As JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1)


def decode(data: bytes) -> Result:
    """Reads what `encode` wrote. Raises msgspec.MsgspecError, and ValueError for a document of another version."""
    result = msgspec.json.decode(data, type=Result)
    if result.version != VERSION:
        raise ValueError(f"the result of a drill has version {result.version}; this program reads {VERSION}")
    return result
