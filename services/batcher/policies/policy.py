"""What a dispatch policy is asked, and what it answers. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from services.batcher.seat import Seat

Pick = Callable[[int], int]
"""`pick(n)` gives a random index below n."""


class Match(msgspec.Struct, frozen=True):
    """How much of a prompt an executor remembers, in tokens."""

    device: int
    host: int = 0
    """Beyond what lies on the device."""
    disk: int = 0
    """Beyond those."""

    @property
    def tokens(self) -> int:
        """In all."""
        return self.device + self.host + self.disk


class Asked(msgspec.Struct, frozen=True):
    """A work that is to be placed."""

    prompt_tokens: int
    """Prompt and resumed tokens: what the engine computes, or remembers."""
    reserve_tokens: int
    """Tokens that it is to have blocks for."""
    matches: Mapping[str, Match]
    """By executor; who is not in it remembers nothing."""
    now: float = 0.0
    """Monotonic seconds."""
    adapter: str = ""
    slack_s: float = 0.0
    """Until its first token is due; negative when that has passed."""
    hold_s: float = 0.0
    """How long it may still be held back for a better seat than those it could have now."""
    spare: float = 0.0
    """Share of each executor that it leaves to others: its tenant has more than its share."""
    prefill_rate: float = 0.0
    """Of the mean seat, in tokens per second; 0 when nothing was measured."""
    told: bool = True
    """Whether anybody will read the reason: else it may be empty, since to word it takes as long as to find it."""


class Choice(msgspec.Struct, frozen=True):
    """Where a work goes, or what it waits for, and why."""

    seat: Seat | None
    reason: str
    """For an operator: the figures by which it was decided. See Asked.told."""
    hold_for: str = ""
    """Without a seat: the executor that is worth waiting for. Others may pass meanwhile."""
    hold_s: float = 0.0
    """At most this long."""


class Policy(Protocol):
    """Chooses the executor of a work."""

    name: str
    late: bool
    """Late binding: asked when a slot is free, and takes only a seat with a free slot and room for the blocks.
    Else it is asked once, on arrival, chooses among all seats whatever is on them, and the engine queues; no
    blocks are reserved, as the peers do it."""

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """Chooses among the seats that are open. Changes nothing but its own memory."""
        ...
