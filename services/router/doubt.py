"""Is a cascade's answer in doubt? Pure; a Judge says it of what it is told here: see `cascade.judge`."""

from collections.abc import Sequence
from typing import Protocol

from libs.lane.work import Work
from services.router.policy import Cascade


class Judge(Protocol):
    """Says what speaks against an answer, as a sentence; None: nothing."""

    def __call__(
        self,
        text: str,
        mean_log_prob: float | None,
        schema: str | None,
        patterns: Sequence[str],
        min_mean_log_prob: float,
        /,
    ) -> str | None:
        """Of its text, with the JSON schema that it has to be valid by and the patterns of refusals, or none."""
        ...


def doubt(cascade: Cascade, judge: Judge, text: str | None, mean_log_prob: float | None, work: Work) -> str | None:
    """Why an answer is not to be trusted, as a sentence; None when it is.

    Args:
        text: None while the tokenizer is not there: what cannot be judged is in doubt.
        mean_log_prob: Of its tokens; None when the engine told none: then it is not looked at.
    """
    if text is None:
        return "its tokenizer is being loaded"
    grammar = work.grammar
    schema = grammar.text if cascade.check_schema and grammar is not None and grammar.form == "json_schema" else None
    return judge(text, mean_log_prob, schema, cascade.refusal_patterns, cascade.min_mean_log_prob)
