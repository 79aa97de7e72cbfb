"""One executor's copy of a pool, as the batcher's decisions see it: what it has, and what is on it. Pure."""

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from services.batcher.pace import Pace

MARGIN_S = 0.2
"""Works get more blocks, or leave, when what they have lasts no longer than this at their pace: four ticks."""
LEAST_MARGIN = 16
"""Tokens of that margin, at least."""


class Affinity(IntEnum):
    """How well a work's adapter goes with what an executor does; higher is better (the order of llm-d's LoRA
    score)."""

    TAKEN = 0
    """Others run, as many as there can be: it waits there, or is swapped in."""
    ROOM = 1
    """It has to be loaded."""
    LIES = 2
    """It is in memory."""
    RUNS = 3
    """It runs there, or nothing has to be changed for it."""


@dataclass(frozen=True, slots=True)
class ModelCapacity:
    """A copy that is ready on an executor."""

    slots: int
    blocks: int
    block_tokens: int
    adapter_slots: int = 0
    """Adapters in one batch."""
    adapters: frozenset[str] = frozenset()
    """In its memory."""
    step_tokens: int = 0
    """Tokens that one step computes at most; 0 when the engine does not say."""


class Seat:
    """A copy and its load. Only the batcher writes here, a policy reads.

    Works count from the moment they are placed to the moment their slot is free.
    """

    __slots__ = (
        "adapters", "awaited", "capacity", "clear_at", "context_tokens", "executor", "filled", "first_token_at",
        "open", "pace", "partial", "patient", "prefill_rate", "prefill_s", "prefill_tokens", "prefilling", "reserved",
        "token_s", "works",
    )  # fmt: skip

    def __init__(self, executor: str, capacity: ModelCapacity) -> None:
        self.executor = executor
        self.capacity = capacity
        self.open = True
        """Whether it takes works now: its lane is up and it has refused none a moment ago."""
        self.works = 0
        self.adapters: Counter[str] = Counter()
        """Of these, by adapter, "" for the base."""
        self.patient = 0
        """Of these, async ones."""
        self.reserved = 0
        """Blocks reserved for these."""
        self.partial = 0
        """Of these works, those that have blocks for less than their prompt and answer can come to."""
        self.filled = 0
        """Blocks that they fill within the margin, common prefixes counted for each; kept where blocks are reserved
        more than once."""
        self.prefilling = 0
        """Works that have no token yet."""
        self.prefill_tokens = 0
        """Tokens that these have to compute, less what was found in the cache."""
        self.prefill_s = 0.0
        """Seconds that this takes, as far as can be foreseen."""
        self.first_token_at = 0.0
        """When the last first token came, in monotonic seconds."""
        self.awaited = 0
        """Tokens that works have to compute that are held back for it, as of the last look."""
        self.clear_at = 0.0
        """When it will have computed them, in monotonic seconds, as far as can be foreseen."""
        self.context_tokens = 0
        """Prompt and answer tokens, as of their first token, of the works that decode."""
        self.prefill_rate = 0.0
        """Tokens per second, measured; 0 when nothing is known."""
        self.pace = Pace()
        self.token_s = 0.0
        """Seconds from one token of a work to its next, measured; 0 when nothing is known."""

    def foresee(self, prompt_tokens: int, compute: int) -> float:
        """Seconds to compute the last `compute` tokens of a prompt by themselves; 0 when nothing is known."""
        seconds = self.pace.seconds(prompt_tokens, prompt_tokens - compute)
        return seconds or (compute / self.prefill_rate if self.prefill_rate else 0.0)

    def take(self, adapter: str, patient: bool, blocks: int, compute: int, seconds: float, now: float) -> None:
        """A work is placed that has `compute` tokens to compute, in about so many seconds."""
        self.works += 1
        self.patient += patient
        self.adapters[adapter] += 1
        self.reserved += blocks
        self.prefilling += 1
        self.prefill_tokens += compute
        self.prefill_s += seconds
        self.clear_at = max(self.clear_at, now) + seconds

    def correct(self, tokens: int, seconds: float) -> None:
        """A work that was placed has so much more to compute."""
        self.prefill_tokens += tokens
        self.prefill_s += seconds
        self.clear_at += seconds

    def started(self, compute: int, seconds: float, context: int, now: float) -> None:
        """The first token of a work came; it decodes from now on. `seconds` are what was foreseen."""
        self._computed(compute, seconds, now)
        self.first_token_at = now
        self.context_tokens += context

    def give_back(
        self, adapter: str, patient: bool, blocks: int, compute: int, seconds: float, context: int, now: float
    ) -> None:
        """The slot of a work is free. `compute` is 0 for one that had started, `context` for one that had not."""
        self.works -= 1
        self.patient -= patient
        self.adapters[adapter] -= 1
        if not self.adapters[adapter]:
            del self.adapters[adapter]
        self.reserved -= blocks
        self.context_tokens -= context
        if not context:
            self._computed(compute, seconds, now)

    def backlog_s(self, now: float) -> float:
        """Seconds until it will have computed all prompts that were placed there; 0 when nothing is known."""
        return max(self.clear_at - now, 0.0) if self.prefilling else 0.0

    @property
    def free_slots(self) -> int:
        """Slots for further works; negative where more were placed than it has."""
        return self.capacity.slots - self.works

    @property
    def free_blocks(self) -> int:
        """Blocks that are not reserved."""
        return self.capacity.blocks - self.reserved

    @property
    def margin(self) -> int:
        """Tokens that a work makes there before it is too late to do something about its blocks."""
        return max(int(MARGIN_S / self.token_s) if self.token_s else 0, LEAST_MARGIN)

    def filled_by(self, tokens: int, most: int) -> int:
        """Blocks that a work fills within the margin that has so many tokens now, and at most so many ever."""
        return self.blocks_for(min(tokens + self.margin, most))

    def has_room_for(self, tokens: int) -> bool:
        """Whether a prompt fits beside what is filled, where blocks are reserved more than once."""
        return not self.filled or self.filled + self.blocks_for(tokens + self.margin) <= self.capacity.blocks

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.capacity.block_tokens)

    def affinity(self, adapter: str) -> Affinity:
        """How a work's adapter, "" for none, goes with it."""
        capacity, running = self.capacity, self.adapters
        if not capacity.adapter_slots or adapter in running:
            return Affinity.RUNS
        if not adapter and capacity.adapter_slots > 1:
            return Affinity.RUNS  # the base runs beside any adapters, where several run at once
        # Where several run at once, the base takes none of their places.
        others = len(running) - ("" in running and capacity.adapter_slots > 1)
        if others >= capacity.adapter_slots:
            return Affinity.TAKEN
        return Affinity.LIES if not adapter or adapter in capacity.adapters else Affinity.ROOM

    def _computed(self, compute: int, seconds: float, now: float) -> None:
        self.prefilling -= 1
        self.prefill_tokens -= compute
        self.prefill_s = max(self.prefill_s - seconds, 0.0) if self.prefilling else 0.0
        self.clear_at = now + self.prefill_s  # the forecast is set right at each first token
