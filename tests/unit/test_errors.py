"""The tree of errors, and its way into a google.rpc status and back."""

import re
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.inference.v1 import inference_pb2
from libs import errors
from libs.errors import BY_REASON, HeadraceError, Violation
from libs.rpc.status import from_failure, to_failure, to_status

TOLD = (errors.RequestInvalid, errors.QuotaExceeded, errors.SwitchedOff)
"""Those whose violations travel."""


def leaves(kind: type[HeadraceError] = HeadraceError) -> Iterator[type[HeadraceError]]:
    below = [sub for sub in kind.__subclasses__() if sub.__module__ == errors.__name__]
    if not below:
        yield kind
    for sub in below:
        yield from leaves(sub)


def packed(status: status_pb2.Status) -> set[str]:
    return {detail.TypeName().removeprefix("google.rpc.") for detail in status.details}


def test_every_error_is_known_by_its_reason() -> None:
    assert set(BY_REASON.values()) == set(leaves())
    assert {f"ERROR_REASON_{reason}" for reason in BY_REASON} == set(inference_pb2.ErrorReason.keys()) - {
        "ERROR_REASON_UNSPECIFIED"
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"── (\w+) +([A-Z_]+)", errors.__doc__ or ""))
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    assert drawn == {kind.__name__: codes[kind.code] for kind in leaves()}


@pytest.mark.parametrize("kind", list(leaves()), ids=lambda kind: kind.__name__)
@given(
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
    metadata=st.dictionaries(st.sampled_from(["stage", "model", "request_id"]), st.text("ab ü", max_size=50)),
    violations=st.lists(st.builds(Violation, st.text("ab[0].", max_size=20), st.text("xyz ", max_size=40)), max_size=5),
    retry_after_s=st.none() | st.integers(0, 10**9).map(lambda us: us / 1e6),
)
def test_every_error_survives_its_way(
    kind: type[HeadraceError],
    message: str,
    metadata: dict[str, str],
    violations: list[Violation],
    retry_after_s: float | None,
) -> None:
    error = kind(
        message,
        metadata=metadata,
        violations=violations if kind in TOLD else (),
        retry_after_s=retry_after_s,
    )
    for back in (from_failure(to_status(error)), from_failure(to_failure(error))):
        assert type(back) is kind
        assert back.message == message
        assert back.metadata == metadata
        assert back.violations == error.violations
        assert back.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("error", "details"),
    [
        (errors.CredentialsInvalid("x"), {"ErrorInfo"}),
        (errors.RequestInvalid.of([Violation("a", "b")]), {"ErrorInfo", "BadRequest"}),
        (errors.ModelUnknown("x", metadata={"model": "m"}), {"ErrorInfo", "ResourceInfo"}),
        (errors.SwitchedOff("x", violations=[Violation("a", "b")]), {"ErrorInfo", "PreconditionFailure"}),
        (errors.QuotaExceeded("x", retry_after_s=1.0), {"ErrorInfo", "QuotaFailure", "RetryInfo"}),
        (errors.Overloaded("x", retry_after_s=1.0), {"ErrorInfo", "RetryInfo"}),
        (errors.NoExecutor("x", retry_after_s=2.0), {"ErrorInfo", "RetryInfo"}),
        (errors.DeadlinePassed("x"), {"ErrorInfo"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_details_are_those_of_the_table(error: HeadraceError, details: set[str]) -> None:
    status = to_status(error)
    assert packed(status) == details
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("headrace", f"ERROR_REASON_{error.reason}")


def test_every_violation_is_in_the_message() -> None:
    error = errors.RequestInvalid.of([Violation("a", "is wrong"), Violation("b", "too")])
    assert error.message == "a: is wrong; b: too"


@pytest.mark.parametrize(
    ("code", "kind"), [(14, errors.StageUnavailable), (13, errors.InternalError), (2, errors.InternalError)]
)
def test_what_is_not_ours_is_ours_to_explain(code: int, kind: type[HeadraceError]) -> None:
    assert type(from_failure(status_pb2.Status(code=code, message="foreign"))) is kind


def test_unreadable_details_are_left_out() -> None:
    status = status_pb2.Status(code=14, message="x", details=[any_pb2.Any(type_url="a/b.C", value=b"\xff")])
    assert isinstance(from_failure(status), errors.StageUnavailable)


@pytest.mark.parametrize("letter", ["a", "ü", "世", "\ud800"])
def test_however_much_a_caller_wrote_it_fits_into_trailers(letter: str) -> None:
    long = letter * 10_000
    for kind in leaves():
        many = [Violation(f"chat.messages[{index}]{long}", long) for index in range(1000)]
        status = to_status(kind(long, metadata={"model": long, "request_id": "r"}, violations=many, retry_after_s=1.0))
        percent_encoded = 3 * len(status.message.encode())
        assert percent_encoded + len(status.SerializeToString()) * 4 / 3 < 7000


def test_of_many_violations_the_first_are_told_and_how_many_there_are() -> None:
    error = errors.RequestInvalid.of([Violation(f"chat.messages[{index}].role", "is required") for index in range(500)])
    back = from_failure(to_status(error))
    told = len(back.violations) - 1
    assert back.violations[:told] == error.violations[:told]
    assert told > 30
    assert back.violations[told] == Violation("", f"and {500 - told} more")
