"""The engine's blocks as the executor believes them to be: tensorrtllm_backend tells no block events. Pure."""

from collections.abc import Sequence

from libs.lane.work import Work
from services.executor.blocks import PagedBlocks
from services.executor.engine import BlockEvent, RunnerStats, Step


class ModelledBlocks:
    """Follows the works of a copy through its steps.

    Args:
        remembers: Whether the engine keeps blocks for their prefix (`enable_kv_cache_reuse`).
    """

    def __init__(self, capacity_blocks: int, block_tokens: int, remembers: bool) -> None:
        self.block_tokens = block_tokens
        self.used: int | None = None
        """As the server tells it; None while it does not."""
        self._capacity_blocks = capacity_blocks
        self._remembers = remembers
        self._blocks = PagedBlocks(capacity_blocks, block_tokens)
        self._works: dict[int, Work] = {}
        self._held: set[int] = set()
        self._forgotten = False

    def add(self, work_id: int, work: Work) -> None:
        """A work was submitted."""
        self._works[work_id] = work

    def cached_tokens(self, work: Work) -> int:
        """Prompt tokens that the engine should find in its cache."""
        hashes = self._hashes(work)[: (len(work.prompt) - 1) // self.block_tokens]
        return self._blocks.match(hashes) * self.block_tokens

    def forget(self) -> None:
        """The server has lost everything, and every work with it."""
        self._blocks = PagedBlocks(self._capacity_blocks, self.block_tokens)
        self._held.clear()
        self._forgotten = True

    def follow(self, step: Step) -> None:
        """Takes a step in, and adds to it its events and the blocks in its stats."""
        for work_id, _cached in step.started:
            if (work := self._works.get(work_id)) is not None:
                self._start(work_id, work)
        frame = step.frame
        for work_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
            if work_id in self._held:
                self._blocks.grow(work_id, len(self._works[work_id].prompt) + offset + count)
        for work_id, _outcome in step.outcomes:
            self._works.pop(work_id, None)
            if work_id in self._held:
                self._held.discard(work_id)
                self._blocks.free(work_id)
        if self._forgotten:
            self._forgotten = False
            step.events.append(BlockEvent("cleared"))
        step.events += self._blocks.drain_events()
        used = self._blocks.used if self.used is None else self.used
        step.stats = RunnerStats(step.stats.running, step.stats.waiting, used, self._blocks.cached)

    def _start(self, work_id: int, work: Work) -> None:
        """Gives a work its blocks, if they fit by this reckoning; the engine alone decides."""
        hashes = self._hashes(work)
        if self._blocks.allocate(work_id, hashes, len(work.prompt) + len(work.resumed)) is not None:
            self._held.add(work_id)
            self._blocks.publish(work_id, hashes)

    def _hashes(self, work: Work) -> Sequence[int]:
        return work.block_hashes if self._remembers and work.block_tokens == self.block_tokens else ()
