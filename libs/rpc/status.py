"""Errors of `libs.errors` as google.rpc statuses with details, and back.

The table of codes and details is in docs/operations.md.

A status travels in HTTP/2 trailers, and gRPC gives a call up whose trailers pass 8 KiB. So texts, which may
quote what the caller wrote, are cut, and of very many violations the first ones are told.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from headrace.inference.v1 import inference_pb2
from libs import errors
from libs.errors import HeadraceError, Violation

MESSAGE_BYTES = 512
"""Of an error's message; percent-encoding can make three times as much of it."""
TEXT_BYTES = 256
"""Of one violation's text and of one value in the metadata."""
VIOLATIONS_BYTES = 1536
"""Of all violations together, the last one excepted."""
DETAILS = "grpc-status-details-bin"
"""Under which name a google.rpc.Status travels in a call's trailers."""
_REASON_PREFIX = "ERROR_REASON_"

M = TypeVar("M", bound=message.Message)


def to_status(error: HeadraceError) -> status_pb2.Status:
    """The error as a status: ErrorInfo always, other details by its kind."""
    status = status_pb2.Status(code=error.code, message=_cut(error.message, MESSAGE_BYTES))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def to_failure(error: HeadraceError) -> inference_pb2.Failure:
    """The error as it travels inside a stream."""
    failure = inference_pb2.Failure(code=error.code, message=_cut(error.message, MESSAGE_BYTES))
    for detail in _details(error):
        failure.details.add().Pack(detail)
    return failure


def from_failure(failure: inference_pb2.Failure | status_pb2.Status) -> HeadraceError:
    """Rebuilds an error. One that is not Headrace's own becomes an InternalError or, for UNAVAILABLE, a
    StageUnavailable."""
    reason, metadata, retry_after_s = "", {}, None
    violations: list[Violation] = []
    for detail in failure.details:
        if info := _unpack(detail, error_details_pb2.ErrorInfo()):
            reason, metadata = info.reason.removeprefix(_REASON_PREFIX), dict(info.metadata)
        elif retry := _unpack(detail, error_details_pb2.RetryInfo()):
            retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
        elif bad := _unpack(detail, error_details_pb2.BadRequest()):
            violations.extend(Violation(v.field, v.description) for v in bad.field_violations)
        elif quota := _unpack(detail, error_details_pb2.QuotaFailure()):
            violations.extend(Violation(v.subject, v.description) for v in quota.violations)
        elif precondition := _unpack(detail, error_details_pb2.PreconditionFailure()):
            violations.extend(Violation(v.subject, v.description) for v in precondition.violations)
    fallback = errors.StageUnavailable if failure.code == code_pb2.UNAVAILABLE else errors.InternalError
    kind = errors.BY_REASON.get(reason, fallback)
    return kind(failure.message, metadata=metadata, violations=violations, retry_after_s=retry_after_s)


def _details(error: HeadraceError) -> Iterable[message.Message]:
    yield error_details_pb2.ErrorInfo(
        reason=_REASON_PREFIX + error.reason,
        domain=errors.DOMAIN,
        metadata={key: _cut(value, TEXT_BYTES) for key, value in error.metadata.items()},
    )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(round(error.retry_after_s * 1e6))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    violations = list(_told(error.violations))
    match error:
        case errors.RequestInvalid():
            yield error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.subject, description=v.description)
                    for v in violations
                ]
            )
        case errors.QuotaExceeded():
            yield error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(subject=v.subject, description=v.description)
                    for v in violations
                ]
            )
        case errors.SwitchedOff() | errors.ContractBroken():
            kind = "SWITCH" if isinstance(error, errors.SwitchedOff) else "CONTRACT"
            yield error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=kind, subject=v.subject, description=v.description
                    )
                    for v in violations
                ]
            )
        case errors.ModelUnknown():
            yield error_details_pb2.ResourceInfo(
                resource_type="model",
                resource_name=_cut(error.metadata.get("model", ""), TEXT_BYTES),
                description=_cut(error.message, TEXT_BYTES),
            )


def _told(violations: Sequence[Violation]) -> Iterable[Violation]:
    """As many as there is room for; then one that says how many more there are."""
    size = 0
    for index, violation in enumerate(violations):
        if size >= VIOLATIONS_BYTES:
            yield Violation("", f"and {len(violations) - index} more")
            return
        told = Violation(_cut(violation.subject, TEXT_BYTES), _cut(violation.description, TEXT_BYTES))
        size += len(told.subject.encode()) + len(told.description.encode())
        yield told


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8. Half surrogates, which a caller's JSON can hold, are escaped."""
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"


def _unpack(packed: any_pb2.Any, target: M) -> M | None:
    return target if packed.Unpack(target) else None
