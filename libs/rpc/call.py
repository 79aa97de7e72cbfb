"""What is known of the call being served: filled in by the interceptors, read by the servicers."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from libs.telemetry.tracing import Span


@dataclass(slots=True)
class Call:
    """One RPC on its way through the interceptors."""

    method: str
    """/package.Service/Method"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the caller sent in front of its messages; values of repeated keys with commas between."""
    span: Span | None = None
    """The server span, where the method is traced."""
    deadline: float | None = None
    """Unix seconds, where the caller set one."""
    peer: Sequence[str] = ()
    """Subject alternative names of the certificate with which the caller connected, where it did so by mTLS."""
    identity: Any = None
    """Who calls, as the service's authenticator said."""
    authenticate: "Callable[[Call], Any] | None" = None
    """Says who calls."""

    def who(self) -> Any:
        """Who calls, by the rules of now: a stream may outlive the key that it was opened with. Raises what the
        authenticator raises."""
        if self.authenticate is not None:
            self.identity = self.authenticate(self)
        return self.identity


CALL: ContextVar[Call] = ContextVar("call")
"""The call of the current handler."""
