"""Pages of a list (AIP-158): a token is the position of the page's first item."""

from collections.abc import Sequence
from typing import TypeVar

from libs.errors import RequestInvalid, Violation

DEFAULT, LARGEST = 100, 1000
_TOKEN_DIGITS = 19

T = TypeVar("T")


def size(page_size: int) -> int:
    """Items that a page of this size may have. Raises RequestInvalid for a negative one."""
    if page_size < 0:
        raise RequestInvalid.of([Violation("page_size", f"is {page_size}; at least 0 is allowed")])
    return min(page_size or DEFAULT, LARGEST)


def page(items: Sequence[T], page_size: int, page_token: str) -> tuple[Sequence[T], str]:
    """The page and the token of the next, "" behind the last.

    Raises RequestInvalid for a negative size or a token that no page gave.
    """
    violations = []
    if page_size < 0:
        violations.append(Violation("page_size", f"is {page_size}; at least 0 is allowed"))
    if page_token and not (page_token.isdecimal() and len(page_token) < _TOKEN_DIGITS):
        violations.append(Violation("page_token", "is not a next_page_token of this list"))
    if violations:
        raise RequestInvalid.of(violations)
    start = int(page_token or 0)
    end = start + min(page_size or DEFAULT, LARGEST)
    return items[start:end], str(end) if end < len(items) else ""
