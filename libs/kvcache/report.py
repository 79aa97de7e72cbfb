"""The executor's side of the KV-cache manager: a snapshot, then numbered events, and again after each break."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, starmap
from typing import Literal

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.kvcache.values import BlockEvent, CacheState, CacheTier, Hashes
from libs.kvcache.wire import cache_to_proto, event_to_proto
from libs.streams.client import Dialer
from libs.streams.standing import Endpoint, StandingStream
from libs.tasks import Tasks

REPORT = "/headrace.kvcache.v1.KvCacheStreamService/Report"
MESSAGE_HASHES = 125_000
"""Block hashes in one message: 1 MB. What a snapshot has beyond follows as events."""
EVENT_HASHES = 16
"""What an event counts for beside its hashes, for its pool's name and the rest of it."""
MAX_PENDING = 250_000
"""Hashes that wait; beyond it all of them are dropped, and a snapshot goes out instead."""

EVERY_S = 0.01
"""Between two messages of events: as long as a quick engine's step. An event that comes alone leaves at once; an engine
of many short steps does not wake the manager for each."""

_Change = tuple[str, BlockEvent]
"""A pool, and what changed there; never more hashes than a message takes."""


class Reporter:
    """A standing report to one KV-cache manager. Start it on a running event loop.

    Args:
        executor: This executor's instance id.
        snapshot: The state of every pool. Called when a snapshot is due; it must then include exactly what
            has been pushed so far. So change the state (a CacheMirror) and push in one go, without an await.
    """

    def __init__(
        self, executor: str, snapshot: Callable[[], Sequence[CacheState]], dialer: Dialer, endpoint: Endpoint
    ) -> None:
        self._executor = executor
        self._snapshot = snapshot
        self._up = False
        self._sequence = 0
        self._snapshot_due = False
        self._rest: deque[_Change] = deque()  # of the snapshot; bounded by it
        self._pending: deque[_Change] = deque()
        self._pending_size = 0
        self._loop = asyncio.get_running_loop()
        self._sent_at = -EVERY_S
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        self._stream = StandingStream("report", self, REPORT, dialer, endpoint, self._tasks)

    @property
    def up(self) -> bool:
        """Whether the manager is there."""
        return self._up

    def push(self, pool: str, events: Sequence[BlockEvent]) -> None:
        """Reports changes of a pool's cache. While no stream stands there is nothing to do: the next one
        starts with a snapshot."""
        if not self._up or self._snapshot_due:
            return
        for event in events:
            for part in _split(event):
                self._pending.append((pool, part))
                self._pending_size += _size(part)
        if self._pending_size > MAX_PENDING:
            self.refresh()
        elif events and self._timer is None:
            self._timer = self._loop.call_at(self._sent_at + EVERY_S, self._due)

    def refresh(self) -> None:
        """Sends a snapshot instead of what waits: pools came or went, or too much waits."""
        if self._up:
            self._drop()
            self._snapshot_due = True
            self._stream.wake()

    async def close(self) -> None:
        """Ends the report."""
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()

    def on_up(self) -> None:
        self._up = True
        self.refresh()

    def take(self) -> bytes | None:
        request = self._take()
        return None if request is None else request.SerializeToString()

    def _take(self) -> pb.ReportRequest | None:
        if self._snapshot_due and not self._pending and not self._rest:
            self._snapshot_due = False
            return self._take_snapshot()
        if self._rest:
            changes, _ = _take(self._rest)
        elif self._pending:
            self._sent_at = self._loop.time()
            changes, size = _take(self._pending)
            self._pending_size -= size
        else:
            return None
        self._sequence += 1
        events = pb.BlockEvents(sequence=self._sequence, events=starmap(event_to_proto, _joined(changes)))
        return pb.ReportRequest(executor=self._executor, events=events)

    def on_message(self, data: bytes) -> None:
        if pb.ReportResponse.FromString(data).snapshot_wanted and self._up:
            # Behind the events that wait: the manager may compare the snapshot with what it knows by then.
            self._snapshot_due = True
            self._stream.wake()

    def on_down(self, reason: str) -> None:
        self._up = self._snapshot_due = False
        self._drop()

    def _due(self) -> None:
        self._timer = None
        self._stream.wake()

    def _take_snapshot(self) -> pb.ReportRequest:
        """The snapshot, cut to one message; the rest becomes the first events behind it."""
        self._sequence += 1
        snapshot = pb.Snapshot(sequence=self._sequence)
        room = MESSAGE_HASHES
        for state in self._snapshot():
            first: list[Hashes] = []
            for tier, hashes in state.tiers():
                first.append(hashes[:room])
                if len(hashes) > room:
                    rest = _split(BlockEvent("stored", hashes[room:], tier))
                    self._rest.extend((state.info.pool, part) for part in rest)
                room -= len(first[-1])
            snapshot.pools.append(cache_to_proto(CacheState(state.info, *first)))
        return pb.ReportRequest(executor=self._executor, snapshot=snapshot)

    def _drop(self) -> None:
        self._rest.clear()
        self._pending.clear()
        self._pending_size = 0


def _take(changes: deque[_Change]) -> tuple[list[_Change], int]:
    """The oldest changes that fit into a message, at least one, and their size."""
    taken: list[_Change] = []
    size = 0
    while changes:
        more = _size(changes[0][1])
        if taken and size + more > MESSAGE_HASHES:
            break
        size += more
        taken.append(changes.popleft())
    return taken, size


def _joined(changes: Sequence[_Change]) -> Iterator[_Change]:
    """The same with those as one that follow each other and are alike: the manager pays for each."""
    for (pool, kind, tier), alike in groupby(changes, key=_kind):
        events = [event for _, event in alike]
        whole = [block for event in events for block in event.hashes] if len(events) > 1 else events[0].hashes
        yield pool, BlockEvent(kind, whole, tier)


def _kind(change: _Change) -> tuple[str, Literal["stored", "removed", "cleared"], CacheTier]:
    pool, event = change
    return pool, event.kind, event.tier


def _size(event: BlockEvent) -> int:
    return EVENT_HASHES + len(event.hashes)


def _split(event: BlockEvent) -> Iterator[BlockEvent]:
    """Events that fit into a message each."""
    hashes = event.hashes
    if len(hashes) <= MESSAGE_HASHES:
        yield event
        return
    for start in range(0, len(hashes), MESSAGE_HASHES):
        yield BlockEvent(event.kind, hashes[start : start + MESSAGE_HASHES], event.tier)
