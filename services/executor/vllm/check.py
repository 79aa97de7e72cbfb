"""Is a work fit for the model, and is what the catalogue says fit for vLLM? Pure.

vLLM checks its requests too, but one thing at a time; a caller is told everything at once.
"""

import json
from dataclasses import dataclass

import jsonschema

from libs.errors import RequestInvalid, Violation
from libs.lane.work import Grammar, Sampling, Work

TINY = 1e-6
"""The least of what must be above zero."""

MOST_GRAMMAR_BYTES = 64 * 1024
MOST_GRAMMAR_DEPTH = 64
"""Nesting of brackets. The grammar compiler is recursive."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one loaded model can take."""

    context_tokens: int
    """Prompt and answer together."""
    vocabulary: int
    """Token ids are below this."""


def check(work: Work, limits: Limits) -> None:
    """Raises RequestInvalid with everything that is wrong with a work."""
    violations = [*_prompt_faults(work, limits), *_sampling_faults(work.sampling)]
    if work.grammar is not None and (fault := _grammar_fault(work.grammar)):
        violations.append(Violation("grammar", fault))
    if violations:
        raise RequestInvalid.of(violations)


def _prompt_faults(work: Work, limits: Limits) -> list[Violation]:
    faults = []
    if not work.prompt:
        faults.append(Violation("prompt", "is empty"))
    if len(work.prompt) >= limits.context_tokens:
        text = f"has {len(work.prompt)} tokens, and the context {limits.context_tokens} with the answer"
        faults.append(Violation("prompt", text))
    for field, tokens in (("prompt", work.prompt), ("resumed", work.resumed)):
        if tokens and not (min(tokens) >= 0 and max(tokens) < limits.vocabulary):
            faults.append(Violation(field, f"has a token id outside of the vocabulary of {limits.vocabulary}"))
    return faults


def _sampling_faults(sampling: Sampling) -> list[Violation]:
    def outside(value: float | None, low: float, high: float) -> bool:
        return value is not None and not low <= value <= high  # NaN is outside, too

    faults = {
        "max_tokens": ("must be at least 1", sampling.max_tokens < 1),
        "temperature": ("must be 0 to 100", outside(sampling.temperature, 0, 100)),
        "top_p": ("must be above 0 and at most 1", outside(sampling.top_p, TINY, 1)),
        "top_k": ("must not be negative", sampling.top_k is not None and sampling.top_k < 0),
        "repetition_penalty": ("must be above 0 and at most 10", outside(sampling.repetition_penalty, TINY, 10)),
        "presence_penalty": ("must be -2 to 2", outside(sampling.presence_penalty, -2, 2)),
        "frequency_penalty": ("must be -2 to 2", outside(sampling.frequency_penalty, -2, 2)),
    }
    return [Violation(f"sampling.{field}", text) for field, (text, wrong) in faults.items() if wrong]


def _grammar_fault(grammar: Grammar) -> str:
    """What can be seen without a compiler; empty when nothing is."""
    if not grammar.text.strip():
        return "is empty"
    if len(grammar.text.encode()) > MOST_GRAMMAR_BYTES:
        return f"is longer than {MOST_GRAMMAR_BYTES} bytes"
    if _depth(grammar.text) > MOST_GRAMMAR_DEPTH:
        return f"is nested deeper than {MOST_GRAMMAR_DEPTH} brackets"
    if grammar.form != "json_schema":
        return ""
    try:
        schema = json.loads(grammar.text)
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except ValueError as error:
        return f"is not JSON: {error}"
    except jsonschema.SchemaError as error:
        return f"is not a JSON schema: {error.message}"[:500]
    return ""


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
