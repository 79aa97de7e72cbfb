"""Copies that are missing, the most urgent first. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from libs.catalogue import ModelSpec
from services.placement.draft import Draft

UNLOADED = "unloaded from "
"""How the story of a model begins that lies nowhere any more; it has no semicolon in it."""


class Rank(IntEnum):
    """How urgent a missing copy is, and so what may be done for it."""

    STARVING = 0
    """Works wait and no copy lies anywhere."""
    FLOOR = 1
    """The catalogue wants it, whatever the demand."""
    DEMAND = 2
    """The works are more than the other copies are to carry."""
    ROLLOUT = 3
    """A new version beside copies of the old one, which still answer."""


@dataclass(frozen=True, slots=True)
class Want:
    """One missing copy."""

    spec: ModelSpec
    rank: Rank
    number: int
    """The how-manieth copy it is."""
    of: int
    waiting_s: float = 0.0
    """Age of the oldest work that waits for the model."""
    why: str = ""

    @property
    def order(self) -> tuple[object, ...]:
        """Pinned models first; then who waits longest; then everyone's first copy before anyone's second, and
        large copies before small ones (first fit decreasing)."""
        spec = self.spec
        starving = -self.waiting_s if self.rank == Rank.STARVING else 0.0
        return not spec.pinned, self.rank, starving, self.number, -spec.copy_bytes, spec.name


def wants(draft: Draft, model: str) -> Iterator[Want]:
    """What a model lacks in this draft."""
    spec, wish, load = draft.world.models[model], draft.wishes[model], draft.load(model)
    working, old = draft.working(model), draft.old(model)
    floor = spec.scaling.min if spec.scaling else spec.replicas or 1
    waiting_s = load.oldest_waiting_s if load.waiting else 0.0
    for number in range(len(working) + 1, wish.need + 1):
        rank = Rank.FLOOR if number <= floor else Rank.DEMAND
        if load.waiting and number == 1:
            rank = Rank.STARVING
        yield Want(spec, rank, number, wish.need, waiting_s, wish.why)
    if not old or len(working) < wish.need:
        return
    new = [copy for copy in draft.of[model].values() if copy.spec.pool == spec.pool]
    if all(draft.ready(copy) for copy in new):  # one at a time, and not on when one has failed
        yield Want(spec, Rank.ROLLOUT, len(new) + 1, len(new) + len(old))
