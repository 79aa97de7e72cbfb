"""What a caller can set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How one answer is to be made. None means the model's, or the tenant's, default."""

    max_tokens: int | None = None
    """At most this many tokens; None: what the tenant and the context allow."""
    temperature: float | None = None
    """0 is greedy. In [0, 2]."""
    top_p: float | None = None
    """Cumulative probability kept, in (0, 1]."""
    top_k: int | None = None
    """Number of candidates kept; 0 keeps all."""
    seed: int | None = None
    """Makes a sampled answer repeatable on one engine."""
    repetition_penalty: float | None = None
    """> 1 makes repetition less likely. In (0, 10]."""
    presence_penalty: float | None = None
    """Added per token already seen. In [-2, 2]."""
    frequency_penalty: float | None = None
    """Added per occurrence of a token already seen. In [-2, 2]."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these; at most 16, each 1 to 256 characters."""
    ignore_end: bool = False
    """Do not stop at the model's end-of-text token."""
    json_schema: Mapping[str, Any] | str | None = None
    """The answer is JSON that fits this schema (draft 2020-12). At most one of the three grammars."""
    regex: str | None = None
    """The answer matches this regular expression."""
    ebnf: str | None = None
    """The answer is a sentence of this grammar."""
    log_probs: bool = False
    """Also give the natural log-probability of each chosen token."""
    output: Literal["text", "token_ids", "both"] = "text"
    """What chunks carry. Token ids come with text too while resuming is on: it needs them."""
    tier: Literal["interactive", "async"] | None = None
    """Whether a person is waiting."""
    timeout: float | None = None
    """Seconds for the whole answer, re-sending included; None: the client's."""
    request_id: str | None = None
    """Names the request in traces, logs and errors: at most 64 of [A-Za-z0-9._-]."""
    contract: str | None = None
    """The contract that the answer is under: what it looks like, and which tools the model has."""
    requires: Sequence[str] = ()
    """What the model must be capable of, beyond what the request itself uses: "lang:de"; at most 16."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Whatever the request shall be found by in traces: at most 16."""

    def __post_init__(self) -> None:
        if sum(form is not None for form in (self.json_schema, self.regex, self.ebnf)) > 1:
            raise ValueError("give one of json_schema, regex and ebnf")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a request is sent again.

    That is when the mesh or the way to it is unavailable, or when the mesh says after which time to try
    again; always within the request's timeout. Between tries passes a random time that doubles.
    """

    attempts: int = 8
    """Tries in a row that bring no new token, the first included. 1 never sends again. With the default delays
    they span about ten seconds: long enough for a process that is started again."""
    first_delay: float = 0.1
    """Seconds before the second try, more or less."""
    longest_delay: float = 5.0
    """Seconds between tries at most. If the mesh asks for a longer pause, its error is raised instead."""
    resume: bool = True
    """Whether an answer that broke off goes on behind the tokens that are here. If not, it raises."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay < 0 or self.longest_delay < self.first_delay:
            raise ValueError("attempts is at least 1, and 0 <= first_delay <= longest_delay")

    def delay(self, failures: int, retry_after: float | None, random: float) -> float:
        """Seconds to wait after so many failures in a row; `random` is in [0, 1)."""
        backoff = min(self.longest_delay, self.first_delay * 2.0 ** min(failures - 1, 30))
        # At least what the mesh asks for, and never all clients at the same moment.
        return max(backoff * (0.5 + random / 2), (retry_after or 0.0) * (1 + random / 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is secured; every field is optional. All values are PEM."""

    ca: bytes | None = None
    """Certificates to trust; None: the system's."""
    certificate: bytes | None = None
    """The client's own certificate chain, where the mesh asks for one."""
    key: bytes | None = None
    """Its private key."""
    server_name: str | None = None
    """The name that the server's certificate must have, if not that of the target."""
