"""How many copies a model should have. Pure."""

from dataclasses import dataclass

from libs.catalogue import ModelSpec
from services.placement.values import Load


@dataclass(frozen=True, slots=True)
class Wish:
    """Copies of one model."""

    need: int
    """It should have these, whatever it takes."""
    keep: int
    """Those that lie may stay up to this number, as long as nobody else needs the room."""
    everywhere: bool
    """Beyond `need`, one on every executor with room."""
    why: str
    """For the reason of a placement."""


def wish(spec: ModelSpec, load: Load, now: float) -> Wish:
    """Reads the catalogue and the load.

    Copies follow the works at once on the way up, and after `scaling.idle_s` of calm on the way down: that
    hysteresis is all that keeps a model from being loaded and unloaded with each wave.
    """
    scaling = spec.scaling
    if scaling is None:
        if spec.replicas == 0:
            return Wish(1, 2**31, True, "")
        return Wish(spec.replicas, spec.replicas, False, "")
    each = scaling.works_per_copy or max(spec.slots, 1)
    least, most = scaling.min, max(scaling.max, scaling.min, 1)
    need = min(max(-(-load.works // each), least), most)
    lately = min(max(-(-load.peak // each), least), most)
    if now - load.last_request < scaling.idle_s:
        lately = max(lately, 1)
    why = f"{load.works} works, {each} a copy" if need > least else ""
    return Wish(need, max(need, lately), False, why)
