"""Is the request well-formed? Pure. Finds every violation, not the first."""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import jsonschema

from libs.errors import Violation
from libs.lane.work import Grammar
from services.admission.request import Request, SamplingRequest

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_TAGS, MAX_TAG_CHARACTERS = 16, 256
MAX_TURNS = 1024
MAX_GRAMMAR_CHARACTERS = 64 * 1024
MAX_REQUIRES = 16
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TAG_KEY = re.compile(r"[a-z0-9_.-]{1,63}")
_CAPABILITY = re.compile(r"[a-z0-9:._-]{1,63}")
_CONTRACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RANGES = {
    "temperature": (0.0, 2.0, True),
    "top_p": (0.0, 1.0, False),
    "repetition_penalty": (0.0, 10.0, False),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
}
"""Field: lowest, highest, and whether the lowest itself is allowed."""


def violations(request: Request) -> Iterator[Violation]:
    """Everything that is wrong whatever the model and the tenant are."""
    if not request.model:
        yield Violation("model", "is required")
    yield from _input(request)
    yield from _sampling(request.sampling)
    if request.grammar is not None:
        yield from grammar_violations(request.grammar)
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        yield Violation("request_id", "has to be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if request.tags:
        yield from _tags(request)
    if request.contract and not _CONTRACT.fullmatch(request.contract):
        yield Violation("contract", "is no name: 1 to 63 characters of A-Z a-z 0-9 . _ -")
    if request.requires:
        yield from _requires(request.requires)
    if request.timeout_s is not None and request.timeout_s <= 0:
        yield Violation("timeout", f"is {request.timeout_s} s; it has to be more than 0")


def _input(request: Request) -> Iterator[Violation]:
    if request.chat is None and request.prompt is None:
        yield Violation("input", "is required: either chat or prompt")
    if request.prompt == "":
        yield Violation("prompt", "is empty")
    if request.chat is None:
        return
    if not request.chat:
        yield Violation("chat.messages", "is empty")
    if len(request.chat) > MAX_TURNS:
        yield Violation("chat.messages", f"has {len(request.chat)} turns; at most {MAX_TURNS} are allowed")
    for index, turn in enumerate(request.chat[:MAX_TURNS]):
        if not turn.role:
            yield Violation(f"chat.messages[{index}].role", "is required: system, user or assistant")


def _sampling(sampling: SamplingRequest) -> Iterator[Violation]:
    if sampling.max_tokens == 0:
        yield Violation("sampling.max_tokens", "is 0; it has to be at least 1")
    for name, (low, high, included) in _RANGES.items():
        value = getattr(sampling, name)
        # written so that NaN is out of range
        if value is not None and not (low < value <= high or (included and value == low)):
            yield Violation(
                f"sampling.{name}", f"is {value:g}; it has to be in {'[' if included else '('}{low:g}, {high:g}]"
            )
    if len(sampling.stop) > MAX_STOPS:
        yield Violation("sampling.stop", f"has {len(sampling.stop)} strings; at most {MAX_STOPS} are allowed")
    for index, stop in enumerate(sampling.stop[:MAX_STOPS]):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            yield Violation(f"sampling.stop[{index}]", f"has to be 1 to {MAX_STOP_CHARACTERS} characters long")


def grammar_violations(grammar: Grammar) -> Sequence[Violation]:
    """A grammar that no engine could use. What passes may still be beyond the engine at hand.

    Costs up to 10 µs per character, the first time.
    """
    if len(grammar.text) > MAX_GRAMMAR_CHARACTERS:
        return [Violation(f"grammar.{grammar.form}", f"is longer than {MAX_GRAMMAR_CHARACTERS} characters")]
    return _judged(grammar)


@lru_cache(maxsize=64)
def _judged(grammar: Grammar) -> Sequence[Violation]:
    return tuple(_grammar(grammar))


def _grammar(grammar: Grammar) -> Iterator[Violation]:
    field = f"grammar.{grammar.form}"
    if not grammar.text.strip():
        yield Violation(field, "is empty")
    elif grammar.form == "json_schema":
        try:
            schema = json.loads(grammar.text)
            jsonschema.Draft202012Validator.check_schema(schema)
        except ValueError as error:
            yield Violation(field, f"is not JSON: {error}")
        except jsonschema.SchemaError as error:
            path = "/".join(str(part) for part in error.absolute_path)
            yield Violation(field, f"is not a JSON schema: at '/{path}': {error.message}")
        except RecursionError:
            yield Violation(field, "is nested too deeply")
    elif grammar.form == "regex":
        try:
            with warnings.catch_warnings(action="ignore"):  # of what a later Python may read in another way
                re.compile(grammar.text)
        except (re.error, RecursionError, OverflowError) as error:
            yield Violation(field, f"is not a regular expression: {error}")


def _tags(request: Request) -> Iterator[Violation]:
    if len(request.tags) > MAX_TAGS:
        yield Violation("tags", f"has {len(request.tags)} entries; at most {MAX_TAGS} are allowed")
    for key, value in list(request.tags.items())[:MAX_TAGS]:
        if not _TAG_KEY.fullmatch(key):
            yield Violation(f"tags[{key[:80]!r}]", "the key has to be 1 to 63 characters of a-z 0-9 _ . -")
        if len(value) > MAX_TAG_CHARACTERS:
            yield Violation(f"tags[{key[:80]!r}]", f"the value is longer than {MAX_TAG_CHARACTERS} characters")


def _requires(capabilities: Sequence[str]) -> Iterator[Violation]:
    if len(capabilities) > MAX_REQUIRES:
        yield Violation("requires", f"has {len(capabilities)} entries; at most {MAX_REQUIRES} are allowed")
    for index, capability in enumerate(capabilities[:MAX_REQUIRES]):
        if not _CAPABILITY.fullmatch(capability):
            yield Violation(f"requires[{index}]", "has to be 1 to 63 characters of a-z 0-9 : . _ -")
