"""Is it worth waiting until the KV-cache manager has said who remembers a prompt? Pure.

To ask and to hear the answer takes a millisecond. What is gained by it is prefill: the tokens that the best executor
remembers beyond those that any other would have remembered. Where all remember the same, be it a system prompt or
nothing at all, it makes no difference which one is chosen, and the work can as well run at once; who remembers what is
heard while it does. Where conversations go on, one executor remembers nearly the whole prompt, and the answer is worth
seconds. So the mean of what was gained lately, as a share of a prompt, says what to expect of the next one.

What is heard while a work runs is for what is ahead on its executor to be known. That is worth as much as it differs
from what was to be expected (approximate_index.py): its mean says the same of the next one.
"""

from collections.abc import Collection, Mapping
from math import inf

from services.batcher.policies.policy import Match

ASK_S = 0.001
"""What it takes to ask: two processes are waked, one after the other."""
WEIGHT = 0.02
"""Of the newest work, in the mean."""


class Worth:
    """What it was worth in one pool."""

    __slots__ = ("_gained", "_news")

    def __init__(self) -> None:
        self._gained = 1.0
        """Mean share of a prompt. Before anything is known, everything is to be gained."""
        self._news = 1.0
        """Mean share of a prompt by which an answer differed from what was expected, of the executor of which it
        differed most."""

    def heard(
        self,
        prompt_tokens: int,
        matches: Mapping[str, Match],
        expected: Mapping[str, Match],
        executors: Collection[str],
    ) -> None:
        """The manager said who remembers a prompt.

        Args:
            executors: Of the pool.
        """
        if not executors or not prompt_tokens:
            return
        found = [match.tokens for name, match in matches.items() if name in executors]
        gained = (max(found, default=0) - sum(found) / len(executors)) / prompt_tokens
        self._gained += (gained - self._gained) * WEIGHT
        named = [name for name in {*matches, *expected} if name in executors]
        news = max([abs(_tokens(matches, name) - _tokens(expected, name)) for name in named], default=0) / prompt_tokens
        self._news += (news - self._news) * WEIGHT

    def asking(self, prompt_tokens: int, prefill_rate: float) -> bool:
        """Whether a prompt is likely computed sooner if it waits for the answer.

        Args:
            prefill_rate: Of an executor, in tokens per second; 0 when nothing was measured.
        """
        return computing_s(self._gained * prompt_tokens, prefill_rate) > ASK_S

    def telling(self, prompt_tokens: int, prefill_rate: float) -> bool:
        """Whether the answer about a prompt that is being computed already likely tells something.

        Args:
            prefill_rate: See `asking`.
        """
        return computing_s(self._news * prompt_tokens, prefill_rate) > ASK_S


def _tokens(matches: Mapping[str, Match], executor: str) -> int:
    match = matches.get(executor)
    return 0 if match is None else match.tokens


def computing_s(tokens: float, prefill_rate: float) -> float:
    """Seconds that an executor takes for so many tokens of a prompt; infinite when nothing was measured.

    Args:
        prefill_rate: In tokens per second; 0 when nothing was measured.
    """
    return tokens / prefill_rate if prefill_rate else inf
