"""Is it worth waiting until the KV-cache manager has said who remembers a prompt? Pure.

To ask and to hear the answer takes a millisecond. What is gained by it is prefill: the tokens that the best executor
remembers beyond those that any other would have remembered. Where all remember the same, be it a system prompt or
nothing at all, it makes no difference which one is chosen, and the work can as well run at once; who remembers what is
heard while it does. Where conversations go on, one executor remembers nearly the whole prompt, and the answer is worth
seconds. So the mean of what was gained lately, as a share of a prompt, says what to expect of the next one.
"""

from collections.abc import Iterable, Mapping
from math import inf

from services.batcher.policies.policy import Match
from services.batcher.seat import Seat

ASK_S = 0.001
"""What it takes to ask: two processes are waked, one after the other."""
WEIGHT = 0.02
"""Of the newest work, in the mean."""


class Worth:
    """What it was worth in one pool."""

    __slots__ = ("_gained",)

    def __init__(self) -> None:
        self._gained = 1.0
        """Mean share of a prompt. Before anything is known, everything is to be gained."""

    def heard(self, prompt_tokens: int, matches: Mapping[str, Match], seats: Iterable[Seat]) -> None:
        """The manager said who remembers a prompt."""
        found = [match.tokens if (match := matches.get(seat.executor)) is not None else 0 for seat in seats]
        if found and prompt_tokens:
            gained = (max(found) - sum(found) / len(found)) / prompt_tokens
            self._gained += (gained - self._gained) * WEIGHT

    def asking(self, prompt_tokens: int, prefill_rate: float) -> bool:
        """Whether a prompt is likely computed sooner if it waits for the answer.

        Args:
            prefill_rate: Of an executor, in tokens per second; 0 when nothing was measured.
        """
        return computing_s(self._gained * prompt_tokens, prefill_rate) > ASK_S


def computing_s(tokens: float, prefill_rate: float) -> float:
    """Seconds that an executor takes for so many tokens of a prompt; infinite when nothing was measured.

    Args:
        prefill_rate: In tokens per second; 0 when nothing was measured.
    """
    return tokens / prefill_rate if prefill_rate else inf
