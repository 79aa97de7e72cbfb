"""What goes into a simulation and what comes out of it, as plain values. Pure.

Times are seconds of virtual time, from the start of the simulation unless said otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.batcher.rules import TierRules
from services.batcher.scheduling import SchedulingRules

OK = "ok"
"""The outcome of a request that was answered."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace."""

    at: float
    """When it reaches the batcher."""
    tenant: str
    tier: Tier
    prompt_tokens: int
    output_tokens: int
    """Tokens of its answer: known to the engine alone, until it has made them."""
    block_hashes: tuple[int, ...]
    """One for each block of the prompt, a last one that is not full may be among them. Chained in meaning:
    equal ids in equal position stand for an equal prefix. Prompts whose caches may not be shared (adapters,
    isolated tenants) have different ids."""
    block_tokens: int
    weight: float = 1.0
    max_tokens: int = 0
    """What the request allows; 0 for the setup's. A longer answer is cut there."""
    deadline_s: float = 600.0
    """From its arrival on."""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """What became of an arrival."""

    arrival: Arrival
    outcome: str
    """OK, or the reason of the error it ended with."""
    queued_s: float
    """In the batcher's queue."""
    first_token_s: float | None
    """From its arrival to its first token; None when there was none."""
    end_s: float
    """From its arrival to its outcome."""
    cached_tokens: int
    output_tokens: int
    executor: str
    """Where it ran last; empty when nowhere."""
    worst_gap_s: float
    """The longest time between two of its tokens, as the engine made them; 0 with less than two."""
    mean_gap_s: float
    pushes: int
    """How often it was taken off an executor, and went on later."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Executors that are all alike, and the rules of the mesh."""

    executors: int
    step: Simulation
    """How long the engines' steps take."""
    slots: int
    blocks: int
    block_tokens: int
    step_tokens: int
    max_tokens: int = 2048
    """Of requests that say nothing."""
    scheduling: SchedulingRules = SchedulingRules()
    """What the batcher goes by: the policy, and its settings."""
    tiers: Mapping[Tier, TierRules] = field(default_factory=dict)
    """Targets and bounds of the queue; the batcher's defaults for a tier that is not here."""
    seed: int = 0
    wire_s: float = 0.0005
    """One way between batcher and executor, and from there to the KV-cache manager."""
    ask_s: float = 0.0
    """Until the KV-cache manager answers."""
    tick_s: float = 0.05
    """Between two ticks of the batcher."""
    sample_s: float = 1.0
    """Between two samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The mesh at one moment."""

    at: float
    waiting: int
    """Works in the batcher's queue."""
    engine_waiting: int
    """Works in the queues of engines."""
    running: int
    """Works that engines compute."""
    used_blocks: float
    """Share of all blocks that works hold."""
    cached_blocks: float
    """Share of all blocks that are kept for their prefix alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a simulation brought."""

    served: Sequence[Served]
    """In order of arrival."""
    evictions: int
    """Blocks that had to leave prefix caches."""
    engine_preemptions: int
    """Works that an engine threw out because its blocks ran out, to compute them again."""
    steps: int
    """Steps of all engines."""
    end_s: float
    """When the last request ended."""
    wall_s: float
    """Real time that the simulation took."""
    samples: Sequence[Sample]
