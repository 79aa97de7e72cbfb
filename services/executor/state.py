"""How far a copy is on this executor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from services.executor.adapter_cache import Resident
from services.executor.engine import Capacity


class State(IntEnum):
    """The numbers are those of headrace.registry.v1.ModelState."""

    LOADING = 1
    READY = 2
    DRAINING = 3
    FAILED = 4
    PENDING = 5


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """What the executor reports of a copy."""

    model: str
    version: str
    state: State
    reason: str = ""
    """Why it failed, waits, or loads again."""
    since: float = 0.0
    """When it came into this state, Unix seconds."""
    memory_bytes: int = 0
    attempts: int = 0
    """Loads that failed in a row."""
    capacity: Capacity | None = None
    """While it is READY."""
    adapters: Mapping[str, Resident] = field(default_factory=dict)
    """In its memory."""


HOLDS_MEMORY = (State.LOADING, State.READY, State.DRAINING)
"""The states in which a copy has the memory that it may use."""
