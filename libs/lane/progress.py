"""How far an answer has come, and what it was so far: kept by a stage until the outcome has passed."""

from array import array
from typing import Protocol

from msgspec.structs import replace

from libs.lane.work import Work


class Gap(Exception):
    """Tokens are missing in front of a frame's entry: the stage behind has broken its promise."""


class Home(Protocol):
    """Where the progress of works is kept together, while they are in flight; libs.lane.passages."""

    def count(self, number: int) -> int:
        """Tokens of a work's answer so far."""
        ...

    def reset(self, number: int) -> None:
        """Its answer begins anew."""
        ...

    def settle(self) -> None:
        """Hands the tokens that have passed to `keep` of their works."""
        ...


class Progress:
    """A work and the tokens of its answer so far.

    While the work is in flight its count stands in its stage's table, and so does the last part of its tokens, until
    somebody asks for them: so a frame adds to all its works at once. Holds at most `sampling.max_tokens` tokens.
    """

    __slots__ = ("_count", "_home", "_kept", "_number", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self._kept = array("I", work.resumed)
        self._count = len(self._kept)
        self._home: Home | None = None
        self._number = 0

    @property
    def count(self) -> int:
        """Tokens of the answer so far; still known when the work has left its table."""
        return self._count if self._home is None else self._home.count(self._number)

    @property
    def tokens(self) -> list[int]:
        """These tokens. Raises ValueError for a work that has left with tokens that nobody had asked for."""
        if self._home is not None and len(self._kept) != self.count:
            self._home.settle()
        if len(self._kept) != self.count:
            raise ValueError(f"{self.work.request_id}: its tokens went when it ended; ask before")
        return self._kept.tolist()

    def restart(self) -> None:
        """The answer begins anew: what came so far is void, and it is held to no pool any more."""
        if self._home is not None:
            self._home.settle()
            self._home.reset(self._number)
        self._kept, self._count = array("I"), 0
        self.work = replace(self.work, resumed=(), pool="")

    def resume(self) -> Work:
        """The work as it is to be sent again: behind the tokens that are here."""
        return replace(self.work, resumed=tuple(self.tokens)) if self.count else self.work

    # Its table's side.

    def enter(self, home: Home, number: int) -> None:
        """From now on it is kept there."""
        self._home, self._number = home, number

    def leave(self) -> None:
        """No more."""
        self._count, self._home = self.count, None

    def keep(self, tokens: bytes) -> None:
        """Appends tokens that were counted already: 32-bit integers."""
        self._kept.frombytes(tokens)
