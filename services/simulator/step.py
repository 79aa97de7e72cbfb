"""A step of a fast engine: what it computes, and what it brings. Pure."""

from dataclasses import dataclass, field

from libs.lane.draft import Draft
from libs.lane.work import Outcome
from services.executor.engine import BlockEvent


@dataclass(slots=True)
class Told:
    """What there is to say at the end of a step."""

    frame: Draft = field(default_factory=Draft)
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    events: list[BlockEvent] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.events or self.frame)


@dataclass(frozen=True, slots=True)
class Load:
    """What a step computes; fields as in Simulation.step_s."""

    prefill: int
    prefill_context: int
    decode: int
    decode_context: int
    host_blocks: int
    """Blocks that come back from the host's tier."""
    alike: int
    """So many steps, this one included, differ in nothing but the contexts, if nothing comes."""
