"""JSON as it is written by the book, of a model that may write anything. Pure."""

import json
from typing import Any, NoReturn


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, with what is wrong.

    Refused besides what RFC 8259 has no room for: a key that comes twice, NaN and Infinity, nesting that is too deep,
    and halves of surrogate pairs, which are no text.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        dumps(value).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair") from None
    return value


def dumps(value: Any) -> str:
    """A value in a line."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
