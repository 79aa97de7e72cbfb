"""Questions that a loaded model has to answer: when it is loaded, when an adapter is, and when somebody asks."""

import numpy as np
import openvino_genai as genai

from services.executor.child.fault import last_line
from services.executor.openvino.pipeline import LoadError, Pipeline

BLOCK_SIZES = (8, 16, 32, 64, 128)
PROMPT_TOKENS = 65
"""A prompt of this length takes a different number of blocks of each of BLOCK_SIZES but the last two."""

STRENGTH = 0.02
"""Of the adapter that is tried on all places: see `uniform`."""

ROUNDING = 0.5
"""Nats. Keys and values are kept in 8 bits, so behind a cached prefix the same answer comes a little different."""

NOTICEABLE = 1e-3
"""Nats. What an adapter that changes every layer has to change at least."""


class Question:
    """A short prompt of which two greedy tokens are read."""

    def __init__(self, pipeline: Pipeline, prompt: list[int], vocabulary: int) -> None:
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.ignore_eos = True
        config.max_new_tokens = 2
        config.logprobs = 1
        self._handle = pipeline.request(prompt, config)
        self._vocabulary = vocabulary
        self.tokens: list[int] = []
        self.log_probs: list[float] = []

    def cancel(self) -> None:
        """Gives it up."""
        self._handle.cancel()

    def answered(self) -> bool:
        """Reads what is new; True once the answer is whole, or there will be none."""
        while self._handle.can_read():
            output = self._handle.read()[0]
            self.tokens += output.generated_ids
            self.log_probs += output.generated_log_probs
        return bool(self._handle.get_status() != genai.GenerationStatus.RUNNING)

    @property
    def fault(self) -> str:
        """What is wrong with the answer; empty when nothing is."""
        if len(self.tokens) != 2 or not all(0 <= token < self._vocabulary for token in self.tokens):
            return f"the self-test's answer is wrong: {self.tokens}"
        if not np.isfinite(self.log_probs).all():
            return "the self-test's answer has log-probabilities that are not finite"
        return ""


def prompt(vocabulary: int) -> list[int]:
    """Longer than any block."""
    first = max(vocabulary // 2, 1)
    return [(first + 7 * n) % vocabulary for n in range(PROMPT_TOKENS)]


def ask(pipeline: Pipeline, tokens: list[int], vocabulary: int) -> tuple[list[float], int]:
    """Asks an idle engine; returns the log-probabilities of the answer and the most blocks that were used.

    Raises LoadError.
    """
    used = 0
    try:
        question = Question(pipeline, tokens, vocabulary)
        while not question.answered():
            pipeline.step()
            used = max(used, pipeline.used_blocks)
        pipeline.settle()
    except RuntimeError as error:
        raise LoadError(f"the self-test failed: {last_line(error)}") from error
    if question.fault:
        raise LoadError(question.fault)
    return question.log_probs, used


def measure(pipeline: Pipeline, vocabulary: int) -> int:
    """Has a new engine answer, and proves that salts do not change answers. Returns the tokens per block.

    Raises LoadError.
    """
    tokens = prompt(vocabulary)
    plain, used = ask(pipeline, tokens, vocabulary)
    salted, _ = ask(pipeline, pipeline.salts.with_number(tokens, pipeline.salts.most), vocabulary)
    if not np.allclose(plain, salted, atol=NOTICEABLE):
        raise LoadError("the graph does not mask token ids: prefixes of different adapters and tenants would mix")
    fitting = [size for size in BLOCK_SIZES if -(-(PROMPT_TOKENS + 1) // size) == used]
    if len(fitting) != 1:
        raise LoadError(f"{PROMPT_TOKENS + 1} tokens take {used} blocks: of which size?")
    return fitting[0]


def prove_places(pipeline: Pipeline, vocabulary: int) -> None:
    """Proves that adapters act on an engine that was just built with places, for it ignores without a word what
    it finds no place for; that none acts once none is active; and that one acts alike behind a cached prefix.

    Raises LoadError.
    """
    tokens, log_probs = prompt(vocabulary), []
    try:
        for name, strength in (("none", 0.0), ("one", STRENGTH), ("none again", 0.0), ("one", STRENGTH)):
            if strength:
                pipeline.act_uniformly(strength)
            else:
                pipeline.activate("")
            log_probs.append(ask(pipeline, pipeline.salts.mark(tokens, f"places: {name}"), vocabulary)[0])
        pipeline.activate("")
    except RuntimeError as error:
        raise LoadError(f"the engine does not take adapters: {last_line(error)}") from error
    before, during, after, cached = log_probs
    if np.allclose(before, during, atol=NOTICEABLE):
        raise LoadError("the engine ignores adapters")
    if not np.allclose(before, after, atol=NOTICEABLE):
        raise LoadError("an adapter goes on acting when it should not")
    if not np.allclose(during, cached, atol=ROUNDING):
        raise LoadError("behind a cached prefix an adapter acts otherwise")
