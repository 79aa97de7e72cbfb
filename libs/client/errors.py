"""Every error that the SDK raises.

HeadraceError
├── CallerError               the request, as it stands, will never succeed
│   ├── CredentialsInvalid    no API key, or one that nobody has
│   ├── NotAllowed            the tenant may not do this
│   ├── RequestInvalid        `violations` lists every bad field
│   ├── ModelUnknown          no model or alias has this name
│   ├── ContractUnknown       the tenant has no contract of this name
│   ├── ContractBroken        the answer is not what the contract asks for; `violations` lists how
│   ├── ApprovalUnknown       no tool call waits under this id, any more
│   ├── ApprovalDenied        a person said no to a tool call
│   ├── SwitchedOff           a kill switch is on; `violations` names it
│   └── NotSupported          the model's engine cannot do this
├── CapacityError             the same request may succeed later
│   ├── QuotaExceeded         a limit of the tenant; `violations` names it
│   ├── Overloaded            a limit of the mesh
│   ├── NoExecutor            nothing serves the model now
│   ├── ToolFailed            a tool failed, retries included
│   └── StageUnavailable      the mesh, or the way to it, is down or restarting
├── DeadlinePassed            `timeout` is over, or cannot be met
├── Cancelled                 the mesh was told to stop
└── InternalError             a bug in the mesh, or an answer that this SDK does not know

Mistakes in the use of the SDK itself are ValueError and RuntimeError.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

M = TypeVar("M", bound=message.Message)

STATUS_DETAILS = "grpc-status-details-bin"
REASON_PREFIX = "ERROR_REASON_"


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field, one used-up quota, one switch that is on, or one way in which a contract is broken."""

    subject: str
    """The field's path ("sampling.temperature"), the quota, or the switch."""
    description: str
    """What is wrong, in a sentence."""


class HeadraceError(Exception):
    """An error that the mesh answered, or that took its place."""

    def __init__(
        self,
        message: str,
        *,
        code: int = 2,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        """One sentence for a developer."""
        self.code = code
        """The google.rpc.Code."""
        self.reason = reason
        """The name of a headrace.inference.v1.ErrorReason without its prefix; "" when the mesh gave none."""
        self.metadata = dict(metadata or {})
        """Facts for programs."""
        self.violations = tuple(violations)
        """Everything that is wrong with the request."""
        self.retry_after = retry_after
        """Seconds after which trying again makes sense, if the mesh says so."""


class CallerError(HeadraceError):
    """The request, as it stands, will never succeed."""


class CredentialsInvalid(CallerError):
    """No API key came with the call, or nobody has it."""


class NotAllowed(CallerError):
    """The tenant may not do this."""


class RequestInvalid(CallerError):
    """Fields of the request are wrong; `violations` lists all of them."""


class ModelUnknown(CallerError):
    """No model or alias has this name."""


class ContractUnknown(CallerError):
    """The contract does not exist, or is not for this tenant."""


class ContractBroken(CallerError):
    """The answer broke its contract, all repairs included; `violations` lists how."""


class ApprovalUnknown(CallerError):
    """No tool call waits under this approval id: it was decided, or its request has ended."""


class ApprovalDenied(CallerError):
    """A person said no to a tool call."""


class SwitchedOff(CallerError):
    """A kill switch covers the request; `violations` names it."""


class NotSupported(CallerError):
    """The engine behind the model cannot do this."""


class CapacityError(HeadraceError):
    """The same request may succeed later."""


class QuotaExceeded(CapacityError):
    """A limit of the tenant is reached; `violations` names it."""


class Overloaded(CapacityError):
    """A queue or the cache of the mesh is full."""


class NoExecutor(CapacityError):
    """Nothing serves the model now."""


class ToolFailed(CapacityError):
    """A tool failed, retries included."""


class StageUnavailable(CapacityError):
    """The mesh, or the way to it, is down or restarting; or a stream ended without an end of the answer."""


class DeadlinePassed(HeadraceError):
    """The time is over, or what is left cannot be enough; `metadata["stage"]` says where the request stood."""


class Cancelled(HeadraceError):
    """The mesh was told to stop this generation."""


class InternalError(HeadraceError):
    """A bug in the mesh, or an answer that this SDK does not know."""


_BY_REASON: Mapping[str, type[HeadraceError]] = {
    "CREDENTIALS_INVALID": CredentialsInvalid,
    "NOT_ALLOWED": NotAllowed,
    "REQUEST_INVALID": RequestInvalid,
    "MODEL_UNKNOWN": ModelUnknown,
    "CONTRACT_UNKNOWN": ContractUnknown,
    "CONTRACT_BROKEN": ContractBroken,
    "APPROVAL_UNKNOWN": ApprovalUnknown,
    "APPROVAL_DENIED": ApprovalDenied,
    "TOOL_FAILED": ToolFailed,
    "SWITCHED_OFF": SwitchedOff,
    "NOT_SUPPORTED": NotSupported,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "OVERLOADED": Overloaded,
    "NO_EXECUTOR": NoExecutor,
    "STAGE_UNAVAILABLE": StageUnavailable,
    "DEADLINE_PASSED": DeadlinePassed,
    "CANCELLED": Cancelled,
    "INTERNAL": InternalError,
}

# For proxies, gRPC itself, and meshes newer than this SDK: they give a code and no reason known here.
_BY_CODE: Mapping[int, type[HeadraceError]] = {
    # Nobody here cancels a call and then reads its status: one without a reason is that of a server that stops, which
    # cancels the calls that came too late for its drain.
    1: StageUnavailable,
    3: RequestInvalid,
    4: DeadlinePassed,
    5: ModelUnknown,
    7: NotAllowed,
    8: Overloaded,
    9: SwitchedOff,
    12: NotSupported,
    # The mesh gives a reason with each of its own INTERNALs: one without is a stream that was reset, as a proxy
    # does when the process behind it dies.
    13: StageUnavailable,
    14: StageUnavailable,
    16: CredentialsInvalid,
}


def from_rpc_error(error: aio.AioRpcError) -> HeadraceError:
    """The typed error of a call that ended badly."""
    packed = (error.trailing_metadata() or aio.Metadata()).get(STATUS_DETAILS)
    details: Iterable[any_pb2.Any] = ()
    if isinstance(packed, bytes):
        try:
            details = status_pb2.Status.FromString(packed).details
        except message.DecodeError:  # a proxy's own idea of details: the code has to do
            details = ()
    return from_status(error.code().value[0], error.details() or "", details)


def from_status(code: int, text: str, details: Iterable[any_pb2.Any]) -> HeadraceError:
    """The typed error of a google.rpc.Status, or of a Failure inside a session."""
    reason, metadata, retry_after = "", {}, None
    violations: list[Violation] = []
    for detail in details:
        if info := _unpack(detail, error_details_pb2.ErrorInfo()):
            reason, metadata = info.reason.removeprefix(REASON_PREFIX), dict(info.metadata)
        elif retry := _unpack(detail, error_details_pb2.RetryInfo()):
            retry_after = retry.retry_delay.ToMicroseconds() / 1e6
        elif bad := _unpack(detail, error_details_pb2.BadRequest()):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif quota := _unpack(detail, error_details_pb2.QuotaFailure()):
            violations += [Violation(v.subject, v.description) for v in quota.violations]
        elif switch := _unpack(detail, error_details_pb2.PreconditionFailure()):
            violations += [Violation(v.subject, v.description) for v in switch.violations]
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, InternalError)
    return kind(text, code=code, reason=reason, metadata=metadata, violations=violations, retry_after=retry_after)


def _unpack(packed: any_pb2.Any, target: M) -> M | None:
    return target if packed.Unpack(target) else None
