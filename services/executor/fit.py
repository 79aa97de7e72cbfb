"""Can a loaded model do what a work asks for, and is the work itself fit for an engine? Pure.

Admission has judged the request in the same words, and fields have the names that they have there; engines ask
again, for some take over-long prompts and token ids that do not exist without a word, and some die of them.
"""

import json
from collections.abc import Iterator

import jsonschema

from libs.catalogue import unsalted
from libs.errors import NotSupported, Violation
from libs.lane.work import Grammar, Sampling, Work
from services.executor.engine import Capabilities

MOST_GRAMMAR_BYTES = 64 * 1024
MOST_GRAMMAR_DEPTH = 64
"""Nesting of brackets. Grammar compilers are recursive."""

_RANGES = {
    "temperature": (0.0, 100.0, True),
    "top_p": (0.0, 1.0, False),
    "repetition_penalty": (0.0, 10.0, False),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
}
"""Field: lowest, highest, and whether the lowest itself is allowed."""


def refusal(work: Work, can: Capabilities) -> NotSupported | None:
    """The error with everything that a work asks for and the model lacks; None when it lacks nothing.

    A seed that cannot be kept, and a priority that cannot be heeded, harm nobody: they are no reason to refuse.
    """
    sampling = work.sampling
    penalized = bool(sampling.presence_penalty or sampling.frequency_penalty)
    _, tenant = unsalted(work.salt)
    mixes = bool(tenant) and can.remembers and not can.salted_cache
    penalized = penalized or sampling.repetition_penalty not in (None, 1.0)  # 1 is how "none" is written
    lacking = [
        what
        for what, asked in (
            (f"a grammar in the form {work.grammar.form}" if work.grammar else "", _lacks_grammar(work, can)),
            ("log-probabilities", work.log_probs and not can.log_probs),
            ("adapters", bool(work.adapter) and can.adapters == "none"),
            ("penalties", penalized and not can.penalties),
            ("ignore_end", sampling.ignore_end and not can.ignore_end),
            ("top_k", bool(sampling.top_k) and not can.top_k),
            (f"keeping prompts of tenant {tenant} apart from those of others, as its policy asks", mixes),
        )
        if asked
    ]
    return NotSupported(f"the engine of this model does not support {', '.join(lacking)}") if lacking else None


def _lacks_grammar(work: Work, can: Capabilities) -> bool:
    return work.grammar is not None and work.grammar.form not in can.grammars


def faults(work: Work, context_tokens: int = 0, vocabulary: int = 0) -> list[Violation]:
    """Everything that is wrong with a work, for an engine that cannot be trusted to find it.

    Args:
        context_tokens: Of prompt and answer together; 0 leaves that to the engine.
        vocabulary: One more than the greatest token id; 0 leaves that to the engine.
    """
    found = [*prompt_faults(work, context_tokens, vocabulary), *_sampling_faults(work.sampling)]
    if work.grammar is not None and (fault := _grammar_fault(work.grammar)):
        found.append(grammar_violation(work.grammar, fault))
    return found


def prompt_faults(work: Work, context_tokens: int = 0, vocabulary: int = 0) -> list[Violation]:
    """What is wrong with a work's tokens; see `faults`."""
    found = []
    if not work.prompt:
        found.append(Violation("input", "has no tokens"))
    elif context_tokens and len(work.prompt) >= context_tokens:
        found.append(Violation("input", f"has {len(work.prompt)} tokens; at most {context_tokens - 1} are allowed"))
    for field, tokens in (("input", work.prompt), ("resumed_token_ids", work.resumed)):
        if vocabulary and tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary:
            found.append(Violation(field, f"has ids outside the vocabulary of {vocabulary}"))
    return found


def grammar_violation(grammar: Grammar, fault: str) -> Violation:
    """A grammar that cannot be used, and why."""
    return Violation(f"grammar.{grammar.form}", fault)


def _sampling_faults(sampling: Sampling) -> Iterator[Violation]:
    if sampling.max_tokens < 1:
        yield Violation("sampling.max_tokens", f"is {sampling.max_tokens}; it has to be at least 1")
    if sampling.top_k is not None and sampling.top_k < 0:
        yield Violation("sampling.top_k", f"is {sampling.top_k}; it has to be at least 0")
    for name, (low, high, included) in _RANGES.items():
        value = getattr(sampling, name)
        # written so that NaN is out of range
        if value is not None and not (low < value <= high or (included and value == low)):
            bounds = f"{'[' if included else '('}{low:g}, {high:g}]"
            yield Violation(f"sampling.{name}", f"is {value:g}; it has to be in {bounds}")


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
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
