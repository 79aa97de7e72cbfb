"""Errors of `libs.errors` as google.rpc statuses with details, and back.

The table of codes and details is in docs/operations.md.
"""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from headrace.inference.v1 import inference_pb2
from libs import errors
from libs.errors import HeadraceError, Violation

_REASON_PREFIX = "ERROR_REASON_"

M = TypeVar("M", bound=message.Message)


def to_status(error: HeadraceError) -> status_pb2.Status:
    """The error as a status: ErrorInfo always, other details by its kind."""
    status = status_pb2.Status(code=error.code, message=error.message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def to_failure(error: HeadraceError) -> inference_pb2.Failure:
    """The error as it travels inside a stream."""
    failure = inference_pb2.Failure(code=error.code, message=error.message)
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
        reason=_REASON_PREFIX + error.reason, domain=errors.DOMAIN, metadata=error.metadata
    )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(int(error.retry_after_s * 1e6))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    match error:
        case errors.RequestInvalid():
            yield error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.subject, description=v.description)
                    for v in error.violations
                ]
            )
        case errors.QuotaExceeded():
            yield error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(subject=v.subject, description=v.description)
                    for v in error.violations
                ]
            )
        case errors.SwitchedOff():
            yield error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type="SWITCH", subject=v.subject, description=v.description
                    )
                    for v in error.violations
                ]
            )
        case errors.ModelUnknown():
            yield error_details_pb2.ResourceInfo(
                resource_type="model", resource_name=error.metadata.get("model", ""), description=error.message
            )


def _unpack(packed: any_pb2.Any, target: M) -> M | None:
    return target if packed.Unpack(target) else None
