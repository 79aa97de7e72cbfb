"""How far a model is on this executor."""

from dataclasses import dataclass
from enum import IntEnum

from services.executor.engine import Exactness


class State(IntEnum):
    """The numbers are those of headrace.registry.v1.ModelState."""

    LOADING = 1
    READY = 2
    DRAINING = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the executor reports of a model."""

    state: State
    reason: str = ""
    """Why it failed, or loads again."""
    slots: int = 0
    blocks: int = 0
    block_tokens: int = 0
    exactness: Exactness = Exactness.MODELLED
