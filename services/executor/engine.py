"""What the executor asks of an engine. One seam for all: OpenVINO, simulated, and those to come.

An Engine loads models; a loaded model is a Runner. A runner takes works and tells its listener, once per
engine step, everything that the step brought.
"""

from dataclasses import dataclass, field
from typing import Protocol

from libs.catalogue import ModelSpec
from libs.kvcache.values import BlockEvent, Exactness
from libs.lane.work import Frame, Outcome, Work


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a loaded model can hold."""

    slots: int
    """Works that run at once."""
    blocks: int
    """KV blocks in all."""
    block_tokens: int
    """Tokens per block."""
    exactness: Exactness


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """A runner's state after a step."""

    running: int = 0
    """Works in the batch."""
    waiting: int = 0
    """Works submitted that are not in the batch yet."""
    blocks_used: int = 0
    """Blocks that hold keys and values of running works."""
    blocks_cached: int = 0
    """Blocks that are kept for their prefix alone and can be evicted."""


@dataclass(slots=True)
class Step:
    """What one engine step brought."""

    frame: Frame = field(default_factory=Frame)
    """New tokens, offsets counted from the start of the answer, resumed tokens included."""
    started: list[tuple[int, int]] = field(default_factory=list)
    """Works that entered the batch, with the prompt tokens found in the cache."""
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    """Works that ended. All their tokens are in this step's frame or an earlier one."""
    events: list[BlockEvent] = field(default_factory=list)
    """What the step changed in the prefix cache."""
    stats: RunnerStats = RunnerStats()
    """The state after the step."""


__all__ = [
    "BlockEvent", "Capacity", "Engine", "Exactness", "Listener", "LoadFailed", "Runner", "RunnerStats", "Step",
]  # fmt: skip


class Listener(Protocol):
    """Hears from a runner, on the event loop. Must not raise."""

    def on_step(self, step: Step) -> None:
        """A step is done. The step is only lent."""
        ...

    def on_broken(self, reason: str) -> None:
        """The runner died: no work on it will get an outcome, and it takes no more."""
        ...


class Runner(Protocol):
    """A loaded model that has passed its self-test."""

    @property
    def capacity(self) -> Capacity:
        """What it can hold; constant."""
        ...

    def submit(self, work_id: int, work: Work) -> None:
        """Starts a work. It gets exactly one outcome, also when it is bad: then with an error.

        More works than slots wait inside the runner, in order. `resumed` tokens are part of the prompt to
        the engine and of the answer to `max_tokens`.
        """
        ...

    def cancel(self, work_id: int) -> None:
        """Stops a work within one step and frees its blocks; its outcome has error Cancelled."""
        ...

    async def close(self) -> None:
        """Frees everything. Works that run get no outcome."""
        ...


class LoadFailed(Exception):
    """A model cannot be loaded; the text says why, to an operator."""


class Engine(Protocol):
    """Loads models."""

    async def load(self, model: ModelSpec, listener: Listener) -> Runner:
        """Loads a model and asks it a question; returns only once it has answered.

        Raises LoadFailed.
        """
        ...

    async def close(self) -> None:
        """Closes every runner."""
        ...
