"""Does a JSON value fit a schema? Pure."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from libs.errors import Violation
from services.admission.contracts import strict_json

MAX_VIOLATIONS = 16
"""A model that is asked again has no use for more."""
TEXT = 240
"""Characters of one violation: jsonschema quotes the value, which can be the whole answer."""


def violations(text: str, schema: str) -> Sequence[Violation]:
    """What is wrong with an answer; the subjects are "answer/…", with the path in it.

    Args:
        schema: A JSON schema (draft 2020-12) that is one, as JSON text.
    """
    try:
        value = strict_json.loads(text.strip())
    except ValueError as error:
        return [Violation("answer", f"is not JSON: {error}"[:TEXT])]
    return of_value(value, schema, "answer")


def of_value(value: Any, schema: str, subject: str) -> Sequence[Violation]:
    """What is wrong with a value."""
    return list(islice(_violations(value, schema, subject), MAX_VIOLATIONS))


def _violations(value: Any, schema: str, subject: str) -> Iterator[Violation]:
    try:
        for error in _validator(schema).iter_errors(value):
            yield Violation("/".join([subject, *map(str, error.absolute_path)]), _told(error))
    except (Unresolvable, RecursionError) as error:
        yield Violation(subject, f"cannot be judged: {type(error).__name__} in the schema")


def _told(error: ValidationError) -> str:
    return error.message if len(error.message) <= TEXT else f"{error.message[:TEXT]}…"


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    # With a registry of its own: without one, jsonschema fetches what a "$ref" points at, wherever that is.
    return Draft202012Validator(strict_json.loads(schema), registry=Registry())
