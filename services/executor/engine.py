"""What the executor asks of an engine. One seam for all of them (docs/engines.md).

An Engine loads models; a loaded model is a Runner. A runner takes works and tells its listener, once per
engine step, everything that the step brought. What a runner cannot do it says in its Capabilities; works that
ask for it are refused before they reach it (services.executor.fit). tests/system/engine_conformance.py holds
every engine to this page.

Imports nothing that another environment may lack: the children of engines read it, too.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from libs.kvcache.values import BlockEvent, Exactness
from libs.lane.draft import Draft
from libs.lane.work import Outcome, Work

if TYPE_CHECKING:
    from libs.catalogue import ModelSpec

__all__ = [
    "BlockEvent", "Capabilities", "Capacity", "Engine", "EngineUnavailable", "Exactness", "Listener", "LoadFailed",
    "Runner", "RunnerStats", "SelfCheckFailed", "Step",
]  # fmt: skip


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
    adapter_slots: int = 0
    """Adapters in one batch; 0 when it takes none."""
    step_tokens: int = 0
    """Tokens that one step computes at most; 0 when the engine does not say."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a loaded model can do."""

    exactness: Exactness
    """Of its block events: told by the engine, or modelled by the executor."""
    grammars: frozenset[str] = frozenset()
    """Of "json_schema", "regex" and "ebnf"."""
    log_probs: bool = False
    adapters: Literal["none", "swap", "batch"] = "none"
    """One adapter at a time, changed between steps; or several in one batch."""
    salted_cache: bool = False
    """Its prefix cache is keyed by the work's salt."""
    remembers: bool = True
    """It finds the prefix of a work again in later ones, as far as anybody knows."""
    cached_tokens: bool = False
    """It tells how many prompt tokens it found in its cache."""
    seeds: bool = False
    """The same seed makes the same answer."""
    penalties: bool = False
    """For repetition, presence and frequency."""
    ignore_end: bool = False
    top_k: bool = False
    priority: bool = False
    """It prefers interactive works among those it holds."""
    resume: Literal["prompt", "replay"] = "prompt"
    """Resumed tokens are part of its prompt; or the answer is made again, compared, and held back so far."""
    paid: bool = False
    """Every question costs money: it is asked none just to see that it answers."""
    token_ids: bool = True
    """It takes and makes token ids; else text, which the executor cuts into tokens."""


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

    frame: Draft = field(default_factory=Draft)
    """New tokens, offsets counted from the start of the answer, resumed tokens included."""
    started: list[tuple[int, int]] = field(default_factory=list)
    """Works that entered the batch, with the prompt tokens found in the cache."""
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    """Works that ended. All their tokens are in this step's frame or an earlier one."""
    events: list[BlockEvent] = field(default_factory=list)
    """What the step changed in the prefix cache."""
    stats: RunnerStats = RunnerStats()
    """The state after the step."""
    preempted: int = 0
    """Works that the engine took out of its batch by itself, for want of blocks; where it says."""
    swaps: list[float] = field(default_factory=list)
    """Seconds that each change of the active adapter took; only where adapters are swapped."""


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

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; constant."""
        ...

    def submit(self, work_id: int, work: Work) -> None:
        """Starts a work. It gets exactly one outcome, also when it is bad: then with an error.

        More works than slots wait inside the runner, in order. `resumed` tokens are part of the prompt to
        the engine and of the answer to `max_tokens`. A work's adapter is loaded, and stays so until its end.
        """
        ...

    def cancel(self, work_id: int) -> None:
        """Stops a work within one step and frees its blocks; its outcome has error Cancelled. Unknown ids are
        ignored."""
        ...

    async def load_adapter(self, adapter: "ModelSpec") -> None:
        """Makes an adapter usable under the name `adapter.adapter`, while works run. Idempotent.

        Raises LoadFailed; nothing has changed then.
        """
        ...

    async def unload_adapter(self, adapter: str) -> None:
        """Gives the memory of an adapter back that no work uses. Idempotent."""
        ...

    async def self_check(self) -> None:
        """Asks the model a question beside the works that run. Raises SelfCheckFailed."""
        ...

    async def close(self) -> None:
        """Frees everything. Works that run get no outcome."""
        ...


class LoadFailed(Exception):
    """A model or an adapter cannot be loaded; the text says why, to an operator."""


class EngineUnavailable(Exception):
    """The engine cannot work here at all; the text says what is missing, and how to get it."""


class SelfCheckFailed(Exception):
    """A loaded model does not answer as it should; the text says how."""


class Engine(Protocol):
    """Loads models."""

    async def start(self) -> None:
        """Looks whether it can work here, without loading anything. Raises EngineUnavailable."""
        ...

    async def load(self, model: "ModelSpec", listener: Listener) -> Runner:
        """Loads a model and asks it a question; returns only once it has answered.

        Raises LoadFailed.
        """
        ...

    async def close(self) -> None:
        """Closes every runner."""
        ...
