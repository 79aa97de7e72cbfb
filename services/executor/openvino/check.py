"""Is a work fit for the engine, and what exactly is the engine to do? Pure.

The engine itself takes over-long prompts and token ids that do not exist without a word, so nothing reaches
it unchecked.
"""

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import jsonschema

from libs.errors import RequestInvalid, Violation
from libs.lane.work import Grammar, Sampling, Work
from libs.models.prepared import Facts
from services.executor.openvino.wire import Submit

GREEDY_BELOW = 1e-4
"""Temperatures below this mean greedy: logits divided by less overflow."""

TINY = 1e-6
"""The least of what must be above zero."""

MOST_GRAMMAR_BYTES = 64 * 1024
MOST_GRAMMAR_DEPTH = 64
"""Nesting of brackets. The engine's grammar compiler is recursive."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one loaded model can take."""

    context_tokens: int
    """Prompt and answer together: the least of the catalogue's, the model's own, and what the cache holds."""
    block_tokens: int
    facts: Facts


def to_submit(work_id: int, work: Work, limits: Limits) -> Submit:
    """What the child is told. An answer that would outgrow the context ends there, with LENGTH.

    A temperature that is not given is the model's own default, else 1. A seed that is not given is derived
    from the request's id, so that a work which is sent again chooses alike.

    Raises RequestInvalid with everything that is wrong.
    """
    sampling, facts = work.sampling, limits.facts
    violations = [*_prompt_faults(work, limits), *_sampling_faults(sampling)]
    if work.grammar is not None and (fault := _grammar_fault(work.grammar)):
        violations.append(Violation("grammar", fault))
    if violations:
        raise RequestInvalid.of(violations)
    temperature = _first(sampling.temperature, facts.temperature, 1.0)
    seed = sampling.seed
    if seed is None:
        seed = int.from_bytes(blake2b(work.request_id.encode(), digest_size=8).digest())
    if work.resumed and work.grammar is None:
        seed += len(work.resumed)  # else the random numbers of the first tokens would be drawn again
    hashes: list[int] | None = None
    if work.block_tokens:
        usable = work.block_tokens == limits.block_tokens
        hashes = list(work.block_hashes[: len(work.prompt) // limits.block_tokens]) if usable else []
    return Submit(
        work_id=work_id,
        prompt=list(work.prompt),
        resumed=list(work.resumed),
        max_tokens=min(sampling.max_tokens, limits.context_tokens - len(work.prompt)),
        deadline=work.deadline,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(sampling.top_p, facts.top_p, 1.0),
        top_k=_first(sampling.top_k, facts.top_k, 0),
        seed=seed % (1 << 64),
        repetition_penalty=_first(sampling.repetition_penalty, facts.repetition_penalty, 1.0),
        presence_penalty=_first(sampling.presence_penalty, None, 0.0),
        frequency_penalty=_first(sampling.frequency_penalty, None, 0.0),
        ignore_end=sampling.ignore_end,
        log_probs=work.log_probs,
        grammar_form=work.grammar.form if work.grammar else "",
        grammar_text=work.grammar.text if work.grammar else "",
        hashes=hashes,
        adapter=work.adapter,
        salt=work.salt,
    )


def _first(asked: Any, models: Any, otherwise: Any) -> Any:
    return asked if asked is not None else models if models is not None else otherwise


def _prompt_faults(work: Work, limits: Limits) -> list[Violation]:
    faults = []
    if not work.prompt:
        faults.append(Violation("prompt", "is empty"))
    if len(work.prompt) >= limits.context_tokens:
        text = f"has {len(work.prompt)} tokens, and the context {limits.context_tokens} with the answer"
        faults.append(Violation("prompt", text))
    for field, tokens in (("prompt", work.prompt), ("resumed", work.resumed)):
        if tokens and not (min(tokens) >= 0 and max(tokens) < limits.facts.vocabulary):
            text = f"has a token id outside of the vocabulary of {limits.facts.vocabulary}"
            faults.append(Violation(field, text))
    return faults


def _sampling_faults(sampling: Sampling) -> list[Violation]:
    def outside(value: float | None, low: float, high: float) -> bool:
        return value is not None and not low <= value <= high  # NaN is outside, too

    faults = {
        "max_tokens": ("must be at least 1", sampling.max_tokens < 1),
        "temperature": ("must be 0 to 100", outside(sampling.temperature, 0, 100)),
        "top_p": ("must be above 0 and at most 1", outside(sampling.top_p, TINY, 1)),
        "top_k": ("must not be negative", sampling.top_k is not None and sampling.top_k < 0),
        "repetition_penalty": (
            "must be above 0 and at most 10",
            outside(sampling.repetition_penalty, TINY, 10),
        ),
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
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
