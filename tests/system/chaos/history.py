"""What happened in a run, as the checks see it: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.system.chaos.schedule import Fault


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as a Finish or a tenant's page tells them."""

    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Expected:
    """The answer to one question in an undisturbed run."""

    tokens: tuple[int, ...]
    text: str
    usage: Usage


@dataclass(slots=True)
class Record:
    """One request as its client saw it."""

    question: int
    """Number of the question; the same one is asked many times."""
    tenant: str
    door: str
    """"generate" or "session"."""
    began_s: float
    """Seconds on the run's clock."""
    ended_s: float | None = None
    ends: int = 0
    """How often it ended: by a finish, an error, or because its client went."""
    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    usage: Usage | None = None
    """Of the finish."""
    error: str = ""
    """The reason of the error that ended it; a status of no reason of ours is "code N: text"."""
    said: str = ""
    """The error's text."""
    resent: int = 0
    """How often the SDK sent it again."""
    left: bool = False
    """The client cancelled it."""

    @property
    def finished(self) -> bool:
        """It ended well."""
        return self.usage is not None


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that came, with when."""

    fault: Fault
    began_s: float
    mended_s: float
    """When all that it broke was well again."""
    what: str = ""
    """Whom it hit, where that was decided only then."""


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """A tenant's page at one admission."""

    requests: int = 0
    prompt: int = 0
    output: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Rest:
    """One process while nothing is asked of the mesh."""

    life: int
    """Which of its lives, from 1: a process that was started again is another."""
    resident: int
    """Bytes."""
    files: int
    """Open file descriptors."""
    tasks: int
    """Of asyncio; 0 for processes that have none."""
    usage: Mapping[str, TenantUsage] = field(default_factory=dict)
    """Of an admission: by tenant."""


@dataclass(slots=True)
class Round:
    """All of one round."""

    records: list[Record] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)
    before: Mapping[str, Rest] = field(default_factory=dict)
    """By process, at rest in front of the round."""
    after: Mapping[str, Rest] = field(default_factory=dict)
    first: Mapping[str, Rest] = field(default_factory=dict)
    """By process, the first time that it was at rest in this life."""
    busy: list[str] = field(default_factory=list)
    """Metrics that are not zero though nothing has been asked for a while."""
    traces: list[str] = field(default_factory=list)
    """Tracebacks in the logs of the mesh's processes."""
    deaths: list[str] = field(default_factory=list)
    """Processes that ended without being killed."""
