"""Is a work fit for the engine? Pure.

Token ids are not looked at: the engine does that, and refuses those that its vocabulary lacks.
"""

import json
from collections.abc import Sequence

from libs.errors import Violation
from libs.lane.work import Grammar, Sampling, Work

TINY = 1e-6
"""The least of what must be above zero."""


def faults(work: Work, context_tokens: int) -> Sequence[Violation]:
    """Everything that is wrong with a work.

    Args:
        context_tokens: Of prompt and answer together; 0 where only the engine knows.
    """
    found = [*_prompt_faults(work, context_tokens), *_sampling_faults(work.sampling)]
    if work.grammar is not None and (fault := _grammar_fault(work.grammar)):
        found.append(Violation("grammar", fault))
    return found


def _prompt_faults(work: Work, context_tokens: int) -> Sequence[Violation]:
    if not work.prompt:
        return [Violation("prompt", "is empty")]
    if context_tokens and len(work.prompt) >= context_tokens:
        text = f"has {len(work.prompt)} tokens, and the context {context_tokens} with the answer"
        return [Violation("prompt", text)]
    return []


def _sampling_faults(sampling: Sampling) -> Sequence[Violation]:
    def outside(value: float | None, low: float, high: float) -> bool:
        return value is not None and not low <= value <= high  # NaN is outside, too

    wrong = {
        "max_tokens": ("must be at least 1", sampling.max_tokens < 1),
        "temperature": ("must be 0 to 100", outside(sampling.temperature, 0, 100)),
        "top_p": ("must be above 0 and at most 1", outside(sampling.top_p, TINY, 1)),
        "top_k": ("must not be negative", sampling.top_k is not None and sampling.top_k < 0),
        "repetition_penalty": ("must be above 0 and at most 10", outside(sampling.repetition_penalty, TINY, 10)),
        "presence_penalty": ("must be -2 to 2", outside(sampling.presence_penalty, -2, 2)),
        "frequency_penalty": ("must be -2 to 2", outside(sampling.frequency_penalty, -2, 2)),
    }
    return [Violation(f"sampling.{field}", text) for field, (text, is_wrong) in wrong.items() if is_wrong]


def _grammar_fault(grammar: Grammar) -> str:
    """What can be seen without a compiler; empty when nothing is."""
    if not grammar.text.strip():
        return "is empty"
    if grammar.form == "json_schema":
        try:
            json.loads(grammar.text)
        except ValueError as error:
            return f"is not JSON: {error}"
    return ""
