"""A listener that keeps everything an engine tells, and notices what it must not tell."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.lane.work import Outcome
from services.executor.engine import BlockEvent, RunnerStats, Step


@dataclass
class Recorder:
    """Checks offsets, outcomes and the order of things as it goes; `faults` has what was wrong."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    log_probs: dict[int, list[float]] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    started: dict[int, int] = field(default_factory=dict)
    """Works that entered the batch, with their cached tokens."""
    events: list[BlockEvent] = field(default_factory=list)
    together: list[tuple[int, ...]] = field(default_factory=list)
    """The works of each frame."""
    stats: list[RunnerStats] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    resumed: dict[int, int] = field(default_factory=dict)
    """Tokens that each work came with; set before it is submitted."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_step(self, step: Step) -> None:
        end, frame = 0, step.frame
        for work_id, cached in step.started:
            if work_id in self.started:
                self.faults.append(f"work {work_id}: started twice")
            self.started[work_id] = cached
        for work_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
            start, end = end, end + count
            tokens = self.tokens.setdefault(work_id, [])
            if offset != len(tokens) + self.resumed.get(work_id, 0):
                self.faults.append(f"work {work_id}: offset {offset} behind {len(tokens)} tokens")
            if work_id in self.outcomes:
                self.faults.append(f"work {work_id}: tokens behind its outcome")
            if work_id not in self.started:
                self.faults.append(f"work {work_id}: tokens before its start")
            tokens += frame.token_ids[start:end]
            self.log_probs.setdefault(work_id, []).extend(frame.log_probs[start:end])
        if end != len(frame.token_ids):
            self.faults.append(f"a frame has {len(frame.token_ids)} tokens and counts {end}")
        self.together.append(tuple(frame.work_ids))
        for work_id, outcome in step.outcomes:
            if work_id in self.outcomes:
                self.faults.append(f"work {work_id}: two outcomes")
            made = len(self.tokens.get(work_id, ())) + self.resumed.get(work_id, 0)
            if outcome.output_tokens != made:
                self.faults.append(f"work {work_id}: outcome of {outcome.output_tokens} behind {made} tokens")
            self.outcomes[work_id] = outcome
        self.events += step.events
        self.stats.append(step.stats)
        self.swaps += step.swaps
        self.changed.set()

    def on_broken(self, reason: str) -> None:
        self.broken.append(reason)
        self.changed.set()

    async def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Waits for a condition on what was told."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ended(self, *work_ids: int) -> Sequence[Outcome]:
        """The outcomes of works, once they are there; nothing was wrong until then."""
        await self.until(lambda: all(work_id in self.outcomes for work_id in work_ids))
        assert not self.faults
        return [self.outcomes[work_id] for work_id in work_ids]
