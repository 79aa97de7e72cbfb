"""What policies do alike: leave out seats that are closed, and draw among equals. Pure."""

from collections.abc import Sequence

from services.batcher.policies.policy import Choice, Match, Pick
from services.batcher.seat import Seat

NONE_OPEN = Choice(None, "no executor of the pool is ready")
NOTHING = Match(0)
"""What an executor remembers that has no match."""


def fewest_works(seats: Sequence[Seat]) -> list[Seat]:
    """The open seats with the fewest works; empty when none is open."""
    best: list[Seat] = []
    least = -1
    for seat in seats:
        if not seat.open:
            continue
        works = seat.works
        if works == least:
            best.append(seat)
        elif works < least or not best:
            best, least = [seat], works
    return best


def draw(equals: Sequence[Seat], pick: Pick) -> Seat:
    """One of the equals, at random: every fixed rule sends a burst to one place."""
    return equals[pick(len(equals))] if len(equals) > 1 else equals[0]


def among(equals: Sequence[Seat]) -> str:
    """The end of a reason: how many were as good."""
    return f", one of {len(equals)} equals" if len(equals) > 1 else ""
