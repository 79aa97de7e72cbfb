"""Blocks that are reserved before anybody needs them, so that a work does not wait for the KV-cache manager. Pure.

What a batcher's works hold on one executor and pool is one reservation at the manager, an allowance, somewhat larger
than what they hold. A work takes its blocks out of it without a word; what it gives back is there for the next one.
Only when there are too few is the manager asked for more, and what was not used for a while goes back to it.

The ledger's promise holds as before. The manager grants all batchers together no more than the executor has, and a
batcher gives its works no more than it was granted: more only once the manager has said so, and less before it says so
itself. What it keeps in advance is bounded by what its works held lately and by a part of what was free; and it keeps
nothing where the manager has said that others lack blocks.
"""

LEAST_SPARE = 64
"""Blocks in advance that an allowance may have, however little was held lately."""
PART = 8
"""One part in so many of the blocks that were free may be held in advance."""


class Allowance:
    """The blocks of one executor and pool. Bounded by the works on it."""

    __slots__ = ("_calm", "_peak", "_works", "asked", "free", "given", "granted")

    def __init__(self) -> None:
        self.granted = 0
        """Blocks that the manager has reserved for sure."""
        self.given = 0
        """Of these, blocks that works have."""
        self.asked: int | None = None
        """The size that it was asked for, and has not answered."""
        self.free = 0
        """Blocks that were free beside those granted, at the last answer."""
        self._works: dict[int, int] = {}
        self._peak = 0
        """The most that was given since `settle`."""
        self._calm = 0
        """For so many more periods nothing is held in advance."""

    def take(self, work: int, blocks: int) -> bool:
        """Gives a work so many blocks, instead of those it has, if they are there."""
        more = self.lacking(work, blocks)
        if more > self.granted - self.given:
            return False
        self.given += blocks - self._works.get(work, 0)
        self._works[work] = blocks
        self._peak = max(self._peak, self.given)
        return True

    def give_back(self, work: int) -> bool:
        """A work has ended; whether it had any."""
        blocks = self._works.pop(work, None)
        if blocks is None:
            return False
        self.given -= blocks
        return True

    def holds(self, work: int) -> bool:
        """Whether a work has blocks."""
        return work in self._works

    def lacking(self, work: int, blocks: int) -> int:
        """What a work wants beyond what it has."""
        return max(blocks - self._works.get(work, 0), 0)

    def ask(self, lacking: int) -> int:
        """The size to ask for, so that so many more blocks can be given and some are there in advance. It is asked for
        one size at a time."""
        need = self.given + lacking
        self.asked = max(need + self._spare(need), self.granted)
        return self.asked

    def answered(self, reserved: bool, free: int) -> int:
        """The manager's answer. Returns how many blocks more can be given: those that are there, and after a refusal
        those that were free, unless it refused less than that, and would again."""
        asked, self.asked, self.free = self.asked, None, free
        assert asked is not None
        if reserved:
            self.granted = asked
        elif asked > self.granted + free:
            return self.granted + free - self.given
        return self.granted - self.given

    def unanswered(self) -> None:
        """The manager is away, or late; then it has what it had before."""
        self.asked = None

    def settle(self) -> int | None:
        """To be called once in a period. The size to which it shrinks; None when it stays."""
        self._calm = max(self._calm - 1, 0)
        peak, self._peak = self._peak, self.given
        return self._shrink(peak + self._spare(peak) if peak else 0)

    def recall(self, periods: int) -> int | None:
        """Others lack blocks: nothing is held in advance for so many periods. The size to which it shrinks."""
        self._calm, self._peak = periods, self.given
        return self._shrink(self.given)

    def lost(self) -> int:
        """The stream to the manager broke: what was held in advance may soon be another's. What the works have."""
        self.granted, self.asked, self.free = self.given, None, 0
        return self.given

    @property
    def used(self) -> bool:
        """Whether anything is held, or was asked for."""
        return bool(self.granted or self._works or self.asked is not None)

    def check_integrity(self) -> None:
        """Raises AssertionError when more is given than was granted, or the sum is wrong."""
        assert self.given == sum(self._works.values())
        assert self.given <= self.granted

    def _spare(self, held: int) -> int:
        """What may be held in advance beside so many blocks."""
        free = self.granted + self.free - held
        return 0 if self._calm else min(max(LEAST_SPARE, held // 2), max(free, 0) // PART)

    def _shrink(self, size: int) -> int | None:
        if self.asked is not None or size >= self.granted:
            return None
        self.free += self.granted - size
        self.granted = size
        return size
