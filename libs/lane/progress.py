"""How far an answer has come: the one place where duplicates are dropped and gaps are seen."""

from collections.abc import Sequence
from dataclasses import replace

from libs.lane.work import Work


class Gap(Exception):
    """Tokens are missing in front of a frame's entry: the stage behind has broken its promise."""


class Progress:
    """A work and the tokens of its answer so far; kept by a stage until the outcome has passed.

    Holds at most `sampling.max_tokens` tokens.
    """

    __slots__ = ("tokens", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokens: list[int] = list(work.resumed)

    def advance(self, offset: int, tokens: Sequence[int]) -> int:
        """Takes in an entry and returns how many of its leading tokens were here already.

        Raises Gap when the entry starts behind the end of what is here; nothing is taken in then.
        """
        known = len(self.tokens) - offset
        if known == 0:  # the usual case, kept cheap: it runs once per work and step
            self.tokens.extend(tokens)
            return 0
        if known < 0:
            raise Gap(f"{self.work.request_id}: {-known} tokens are missing in front of offset {offset}")
        self.tokens.extend(tokens[known:])
        return min(known, len(tokens))

    def restart(self) -> None:
        """The answer begins anew: what came so far is void, and it is held to no pool any more."""
        self.tokens = []
        self.work = replace(self.work, resumed=(), pool="")

    def resume(self) -> Work:
        """The work as it is to be sent again: behind the tokens that are here."""
        return replace(self.work, resumed=tuple(self.tokens))
