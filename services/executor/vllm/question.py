"""The self-check: a question to the model, alone before it counts as loaded, later beside its works. Pure."""

import math
from collections.abc import Sequence
from typing import Protocol

from services.executor.vllm.sampling import Choice

TOKENS = 8
"""Of the answer."""

PREFIX = "check-"
"""Of the requests' names; those of works are numbers."""


class Answer(Protocol):
    """A piece of an answer, as services.executor.vllm.llm.Made."""

    name: str
    tokens: list[int]
    log_probs: list[float]
    end: str


class Question:
    """One question, as often as it is asked; each time its blocks are new to the prefix cache.

    Args:
        prompt: The question.
        vocabulary: Token ids are below this.
    """

    def __init__(self, prompt: Sequence[int], vocabulary: int) -> None:
        self.prompt = list(prompt)
        self.how = Choice(max_tokens=TOKENS, ignore_end=True, log_probs=True)
        self._vocabulary = vocabulary
        self._asked = 0
        self._counts: dict[str, int] = {}

    def next_name(self) -> str:
        """A name, and a salt, for the question that is asked now."""
        self._asked += 1
        name = f"{PREFIX}{self._asked}"
        self._counts[name] = 0
        return name

    def take(self, piece: Answer) -> str | None:
        """Takes a piece of an answer in. The verdict when there is one: what is wrong, or "" for nothing."""
        if (count := self._counts.get(piece.name)) is None:
            return None
        fault = self._fault(piece)
        self._counts[piece.name] = count = count + len(piece.tokens)
        if not (fault or piece.end):
            return None
        del self._counts[piece.name]
        return fault or ("" if count == TOKENS else f"the answer has {count} tokens instead of {TOKENS}")

    def _fault(self, piece: Answer) -> str:
        if piece.end == "INTERNAL":
            return "the engine gave the question up"
        if not all(0 <= token < self._vocabulary for token in piece.tokens):
            return f"the answer has token ids outside of the vocabulary: {piece.tokens}"
        if len(piece.log_probs) != len(piece.tokens) or not all(map(math.isfinite, piece.log_probs)):
            return "the answer has log-probabilities that are not finite"
        return ""
