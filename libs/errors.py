"""Every error that Headrace tells a caller.

HeadraceError
├── CallerError               the request, as it stands, will never succeed
│   ├── CredentialsInvalid    UNAUTHENTICATED
│   ├── NotAllowed            PERMISSION_DENIED
│   ├── RequestInvalid        INVALID_ARGUMENT, with every violation at once
│   ├── ModelUnknown          NOT_FOUND
│   ├── SwitchUnknown         NOT_FOUND
│   ├── PinUnknown            NOT_FOUND
│   ├── PolicyUnknown         NOT_FOUND
│   ├── ContractUnknown       NOT_FOUND
│   ├── ApprovalUnknown       NOT_FOUND
│   ├── ApprovalDenied        PERMISSION_DENIED
│   ├── SwitchedOff           FAILED_PRECONDITION
│   ├── CatalogueChanged      ABORTED
│   ├── ContractBroken        ABORTED, with how
│   └── NotSupported          UNIMPLEMENTED
├── CapacityError             the same request may succeed later
│   ├── QuotaExceeded         RESOURCE_EXHAUSTED, a limit of the tenant
│   ├── Overloaded            RESOURCE_EXHAUSTED, a limit of the mesh
│   ├── NoExecutor            UNAVAILABLE
│   ├── ToolFailed            UNAVAILABLE
│   ├── Rerouted              UNAVAILABLE, between stages only
│   └── StageUnavailable      UNAVAILABLE
├── DeadlinePassed            DEADLINE_EXCEEDED
├── Cancelled                 CANCELLED
└── InternalError             INTERNAL, with no inner text

Pure: no grpc here. `libs.rpc.status` turns these into statuses with google.rpc details and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

DOMAIN = "headrace"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request, one quota that is used up, or one precondition that fails."""

    subject: str
    """The field's path ("sampling.temperature"), the quota, or the switch."""
    description: str
    """What is wrong, in a sentence for a developer."""


class HeadraceError(Exception):
    """An error with everything its caller is to know. Raise a subclass.

    Args:
        message: One sentence for a developer.
        metadata: Facts for programs; goes into google.rpc.ErrorInfo.
        violations: Every fault found; what they are depends on the subclass.
        retry_after_s: When trying again makes sense, in seconds.
    """

    code: ClassVar[int] = 2
    """The google.rpc.Code."""
    reason: ClassVar[str] = "INTERNAL"
    """The name of a headrace.inference.v1.ErrorReason, without its prefix."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class CallerError(HeadraceError):
    """The request, as it stands, will never succeed."""


class CredentialsInvalid(CallerError):
    """No credentials came with the call, or nobody has them."""

    code = 16
    reason = "CREDENTIALS_INVALID"


class NotAllowed(CallerError):
    """The tenant may not do this."""

    code = 7
    reason = "NOT_ALLOWED"


class RequestInvalid(CallerError):
    """Fields of the request are wrong; `violations` lists all of them."""

    code = 3
    reason = "REQUEST_INVALID"

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> "RequestInvalid":
        """An error whose message names every violation."""
        return cls("; ".join(f"{v.subject}: {v.description}" for v in violations), violations=violations)


class ModelUnknown(CallerError):
    """No model or alias has this name; `metadata["model"]` is the name."""

    code = 5
    reason = "MODEL_UNKNOWN"


class SwitchUnknown(CallerError):
    """The kill switch that is to be taken off is not on."""

    code = 5
    reason = "SWITCH_UNKNOWN"


class PinUnknown(CallerError):
    """The prefix that is to be unpinned is not pinned."""

    code = 5
    reason = "PIN_UNKNOWN"


class PolicyUnknown(CallerError):
    """The rule that is to be taken away is not there."""

    code = 5
    reason = "POLICY_UNKNOWN"


class ContractUnknown(CallerError):
    """The request cites a contract that does not exist, or is not for its tenant."""

    code = 5
    reason = "CONTRACT_UNKNOWN"


class ApprovalUnknown(CallerError):
    """No tool call waits under this approval id."""

    code = 5
    reason = "APPROVAL_UNKNOWN"


class ApprovalDenied(CallerError):
    """A person said no to a tool call."""

    code = 7
    reason = "APPROVAL_DENIED"


class ContractBroken(CallerError):
    """The answer broke its contract, all repairs included; `violations` lists how."""

    code = 10
    reason = "CONTRACT_BROKEN"


class SwitchedOff(CallerError):
    """A kill switch covers the request; `violations` names it."""

    code = 9
    reason = "SWITCHED_OFF"


class CatalogueChanged(CallerError):
    """Somebody else changed the catalogue, or a pin, meanwhile; `violations` names what."""

    code = 10
    reason = "CATALOGUE_CHANGED"


class NotSupported(CallerError):
    """The engine behind the model cannot do this."""

    code = 12
    reason = "NOT_SUPPORTED"


class CapacityError(HeadraceError):
    """The same request may succeed later."""


class QuotaExceeded(CapacityError):
    """A limit of the tenant is reached; `violations` names it."""

    code = 8
    reason = "QUOTA_EXCEEDED"


class Overloaded(CapacityError):
    """A queue or the KV cache is full."""

    code = 8
    reason = "OVERLOADED"


class NoExecutor(CapacityError):
    """No live executor serves the model."""

    code = 14
    reason = "NO_EXECUTOR"


class ToolFailed(CapacityError):
    """A tool failed, retries included."""

    code = 14
    reason = "TOOL_FAILED"


class Rerouted(CapacityError):
    """The router chose a model whose tokenizer is not the one that made the prompt: `metadata["model"]`. Goes from
    the router to admission, which sends the request again, and never to a caller."""

    code = 14
    reason = "REROUTED"


class StageUnavailable(CapacityError):
    """The process is draining, or the stage behind it is away."""

    code = 14
    reason = "STAGE_UNAVAILABLE"


class DeadlinePassed(HeadraceError):
    """The deadline is past or cannot be met; `metadata["stage"]` says where the request stood."""

    code = 4
    reason = "DEADLINE_PASSED"


class Cancelled(HeadraceError):
    """Whoever asked for it has gone or has changed their mind."""

    code = 1
    reason = "CANCELLED"


class InternalError(HeadraceError):
    """A bug. The cause is logged where it happened and stays there."""

    code = 13
    reason = "INTERNAL"


BY_REASON: Mapping[str, type[HeadraceError]] = {
    error.reason: error
    for error in (
        CredentialsInvalid, NotAllowed, RequestInvalid, ModelUnknown, SwitchUnknown, PinUnknown, PolicyUnknown,
        ContractUnknown, ApprovalUnknown, ApprovalDenied, SwitchedOff, CatalogueChanged, ContractBroken, NotSupported,
        QuotaExceeded, Overloaded, NoExecutor, ToolFailed, Rerouted, StageUnavailable, DeadlinePassed, Cancelled,
        InternalError,
    )
}  # fmt: skip
"""The class of each reason, to rebuild an error that came over a lane."""
