"""A limit that holds for several processes, cut into shares. Pure.

Max-min fairness by progressive filling: nobody gets more than it asks for while another gets less than it asks for.
(Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2.) What nobody asks for is dealt out in equal parts, so
that a burst that no announcement has foreseen finds something anywhere.
"""

from collections.abc import Sequence
from math import floor

FLOOR = 0.01
"""Part of a limit that is dealt out to all processes alike, asked for or not: so one that is asked for the first time
can begin, and one that is asked no more can pay its debt."""


def share(limit: float, wants: Sequence[float], mine: int) -> float:
    """What the process at place `mine` may use of a limit.

    Args:
        limit: Units per second.
        wants: What each process is asked for, in the same units, at least 0; the same order in every process.

    The shares of all processes by the same `wants` add up to the limit. A share moves by no more than a want has
    moved, and all other shares together by no more than that: see `limits`.
    """
    return _fair(limit, [max(want, FLOOR * limit / len(wants)) for want in wants])[mine]


def slots(limit: int, wants: Sequence[float], held: Sequence[int], mine: int, first: int = 0) -> int:
    """The same for what comes in whole pieces and is held for a while. What remains behind rounding down goes to the
    largest fractions, of equal ones to those that come first.

    Args:
        held: What each process holds. Where that is more than its share, others wait for it to be let go: what all
            may hold and what is held beyond a share add up to the limit.
        first: Which process comes first, the others behind it in turn; the same in every process. One for each
            tenant, else the single pieces of all of them were in the same process.
    """
    count = len(wants)
    parts = _fair(float(limit), wants)
    whole = [floor(part + 1e-9) for part in parts]
    places = sorted(range(count), key=lambda place: (place - first) % count)
    turn = sorted(places, key=lambda place: round(whole[place] - parts[place], 9))
    for place in turn[: max(limit - sum(whole), 0)]:
        whole[place] += 1
    owed = sum(max(has - may, 0) for has, may in zip(held, whole, strict=True))
    for place in places:
        waits = min(max(whole[place] - held[place], 0), owed)
        if place == mine:
            return whole[place] - waits
        owed -= waits
    raise IndexError(mine)


def _fair(limit: float, wants: Sequence[float]) -> Sequence[float]:
    left, count = limit, len(wants)
    slack = limit - sum(wants)
    if slack >= 0:
        return [want + slack / count for want in wants]
    parts = [0.0] * count
    for place in sorted(range(count), key=wants.__getitem__):
        parts[place] = min(wants[place], left / count)
        left -= parts[place]
        count -= 1
    return parts
