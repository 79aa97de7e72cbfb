"""How works of a model are dispatched: an operator's rules. Pure.

Field meanings: policy.proto, Scheduling. A number that is 0 there has its default here, so whoever converts a message
passes only what was written. What is wrong with rules is said where they are written, by the console.
"""

from dataclasses import dataclass
from enum import IntEnum


class Dispatch(IntEnum):
    """Which policy chooses the executor; the numbers are those of headrace.policy.v1.DispatchPolicy."""

    PROMISE = 1
    ROUND_ROBIN = 2
    LEAST_REQUESTS = 3
    POWER_OF_TWO = 4
    CACHE_AWARE = 5
    BLOCK_COST = 6
    WEIGHTED_SCORES = 7


class Reserve(IntEnum):
    """How many blocks a work is given before it runs; the numbers are those of headrace.policy.v1.ReservePolicy."""

    WHOLE = 1
    ESTIMATE = 2


@dataclass(frozen=True, slots=True)
class SchedulingRules:
    """The rules of one model."""

    dispatch: Dispatch = Dispatch.PROMISE
    reserve: Reserve = Reserve.WHOLE
    overcommit: float = 1.0
    """The sum of reservations, over an executor's blocks, at most."""
    quantile: float = 0.9
    """Of the lengths of answers, that ESTIMATE goes by."""
    prefill_ahead_s: float = 0.05
    """Prompts that an executor is given ahead of what it computes, in seconds of prefill."""
    max_hold_s: float = 20.0
    """The longest that a work waits for the holder of its prefix, or for another work to compute it."""
    max_pushes: int = 2
    """How often a work may be pushed out."""
    headroom: float = 0.05
    """Share of an executor's slots that tenants beyond their fair share leave to those below it."""
    warm_prefixes: int = 8
    """Hot prefixes that a new executor is warmed with, at most."""
    cold_start: bool = False
    """Nothing is warmed."""
