"""Is a cheap model's answer in doubt? What its log-probabilities, its JSON schema and its words say. Pure.

The cheapest question comes first. What cannot be judged speaks for the answer: an unsound rule must not send
every request to the dearer model. Bounded in time, because it runs on the event loop: patterns see the head of an
answer, schemas see no answer that is too long, and regular expressions that could take for ever are not run.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from libs.policy import patterns as pattern_rules

HEAD = 4_000
"""Characters of an answer that patterns are searched in: who refuses says so at once."""
MOST_CHARACTERS = 64 * 1024
"""Of an answer that is judged by a schema; checking that many takes milliseconds."""
SAID = 160
"""Characters of a reason: jsonschema quotes the value, which can be the whole answer."""


def judge(
    text: str,
    mean_log_prob: float | None,
    schema: str | None,
    patterns: Sequence[str],
    min_mean_log_prob: float = 0.0,
) -> str | None:
    """Why an answer is in doubt, as a sentence; None when nothing speaks against it.

    Args:
        mean_log_prob: Of its tokens, natural logarithm; None when the engine told none.
        schema: The JSON schema (draft 2020-12) that it has to be valid by, as JSON text; None: none.
        patterns: Regular expressions that refusals match.
        min_mean_log_prob: Below this it is in doubt; 0: not looked at.
    """
    if min_mean_log_prob and mean_log_prob is not None and mean_log_prob < min_mean_log_prob:
        return f"the mean log-probability of its tokens is {mean_log_prob:.3f}, below {min_mean_log_prob:g}"
    if schema is not None and len(text) <= MOST_CHARACTERS and (said := _misfit(text, schema)) is not None:
        return said
    head = text[:HEAD]
    matching = (pattern for pattern in patterns if (known := _pattern(pattern)) is not None and known.search(head))
    found = next(matching, None)
    return None if found is None else f"it matches {found[:SAID]!r}"


def _misfit(text: str, schema: str) -> str | None:
    """What keeps an answer from being valid by a schema."""
    try:
        value = json.loads(text.strip(), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"[:SAID]
    try:
        validator = _validator(schema)
        worst = None if validator is None else best_match(validator.iter_errors(value))
    except (Unresolvable, RecursionError):  # of the schema, not of the answer
        return None
    return None if worst is None else f"it is not valid by its schema: at {worst.json_path}: {worst.message}"[:SAID]


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator | None:
    """None for a schema that is none, or whose own patterns could take for ever."""
    try:
        parsed = json.loads(schema)
        Draft202012Validator.check_schema(parsed)
        sound = all(map(_ends, _expressions(parsed)))
    except (ValueError, RecursionError, SchemaError):
        return None
    # With a registry of its own: without one, jsonschema fetches what a "$ref" points at, wherever that is.
    return Draft202012Validator(parsed, registry=Registry()) if sound else None


def _expressions(schema: Any) -> Iterator[str]:
    """The regular expressions in a schema."""
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        if isinstance(of_names := schema.get("patternProperties"), dict):
            yield from of_names
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            yield from _expressions(inner)


def _ends(pattern: str) -> bool:
    """Whether matching takes bounded time. What matches any text is no fault in a schema: hence the letter."""
    return not pattern_rules.fault(f"a(?:{pattern})")


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str] | None:
    """None for what the rules of policies would not have taken."""
    return None if pattern_rules.fault(pattern) else re.compile(pattern)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
