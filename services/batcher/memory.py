"""What the batcher asks of the KV-cache manager, and what it does without one."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from libs.kvcache.values import PrefixMatch


class Ask(msgspec.Struct, frozen=True):
    """Where does this prefix lie, and does the work fit on this executor?"""

    reservation: int
    """Numbers the question and what it reserves. Asked again for what is reserved already, it changes the number of
    blocks; refused, it leaves what was. Never used for another work or another executor."""
    pool: str
    block_hashes: Sequence[int]
    executor: str
    """Where to reserve; empty only asks where the prefix lies."""
    blocks: int
    traceparent: str = ""


class Reply(msgspec.Struct, frozen=True):
    """The manager's answer."""

    reserved: bool
    matches: Sequence[PrefixMatch] | None
    """Executors that remember some of the prefix, best first; None when blocks were reserved without a look."""
    free_blocks: int


class Memory(Protocol):
    """The KV-cache manager, as the batcher sees it."""

    def ask(self, ask: Ask, done: Callable[[Reply | None], None]) -> None:
        """Asks. `done` is called once, soon: with None when the manager is away or late, and then the
        batcher goes on by load alone. It may be called before `ask` returns."""
        ...

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        """Ends a reservation, or a question whose answer is not wanted any more.

        Args:
            found_blocks: Leading blocks of the prefix that the engine said it had found; None when it ran nothing.
        """
        ...
