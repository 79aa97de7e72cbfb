"""What the batcher asks of the KV-cache manager, and what it does without one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """Where does this prefix lie, and does the work fit on this executor?"""

    reservation: int
    """Numbers the question and what it reserves; never used twice."""
    pool: str
    block_hashes: Sequence[int]
    executor: str
    blocks: int
    traceparent: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The manager's answer."""

    reserved: bool
    matched_blocks: int
    """Leading blocks of the prompt that the executor holds."""
    free_blocks: int


class Memory(Protocol):
    """The KV-cache manager, as the batcher sees it."""

    def ask(self, ask: Ask, done: Callable[[Reply | None], None]) -> None:
        """Asks. `done` is called once, soon: with None when the manager is away or late, and then the
        batcher goes on by load alone. It may be called before `ask` returns."""
        ...

    def release(self, reservation: int) -> None:
        """Ends a reservation, or a question whose answer is not wanted any more."""
        ...
