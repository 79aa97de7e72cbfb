"""One Report stream: what an executor's caches hold."""

from collections.abc import Iterator

import structlog

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.clock import Clock
from libs.errors import RequestInvalid, StageUnavailable, Violation
from libs.kvcache import wire
from libs.kvcache.report import MESSAGE_HASHES
from libs.kvcache.values import BlockEvent, CacheState
from libs.streams.stream import Stream
from services.kvcache.conversation import Conversation, Turns, parsed
from services.kvcache.reports import Verdict
from services.kvcache.upkeep import Upkeep

log = structlog.get_logger()

TURN_BLOCKS = 2048
"""Blocks that are taken in before questions are looked at again: about a millisecond."""


class Reporting:
    """Snapshots and events, taken in in parts, so that a thousand executors that come back at once leave room for
    questions.

    Args:
        turns: Shared by all reports.
    """

    def __init__(self, stream: Stream, upkeep: Upkeep, clock: Clock, turns: Turns) -> None:
        self.conversation = Conversation(stream, self.take, self.flush)
        self._upkeep = upkeep
        self._memory = upkeep.memory
        self._clock = clock
        self._turns = turns
        self._executor = ""
        self._unanswered = False
        self._wanted = False
        self._checking = False

    def ask_again(self) -> None:
        """Asks the executor for a snapshot. Nothing is known to be missed: that is checked when it comes."""
        self._wanted = self._checking = True
        self.conversation.wake()

    async def take(self, data: bytes) -> bool:
        """A snapshot, whose answer says that it is in; or events, which are only answered when something was missed:
        any other answer would wake the executor for nothing."""
        request = parsed(pb.ReportRequest, data)
        self._upkeep.expire()
        if not self._executor:
            if not request.executor:
                raise _missing("executor")
            self._memory.executor_connected(request.executor, self)
            self._executor = request.executor
            self._upkeep.renewed(self._executor, self.ask_again)
            log.info("executor reports", executor=self._executor)
        self._check_newest()
        match request.WhichOneof("content"):
            case "snapshot":
                refused = await self._snapshot(request.snapshot)
                self._unanswered = True
            case "events":
                refused = await self._events(request.events)
            case _:
                raise _missing("content")
        if refused:
            log.error("an executor reports more blocks than fit", executor=self._executor, blocks=refused)
        return True

    def flush(self) -> pb.ReportResponse | None:
        """The newest answer says all."""
        if not self._unanswered and not self._wanted:
            return None
        report = self._memory.reports.executors.get(self._executor)
        response = pb.ReportResponse(sequence=report.sequence if report else 0, snapshot_wanted=self._wanted)
        self._unanswered = self._wanted = False
        return response

    def ended(self) -> None:
        """The executor's grace period begins."""
        if self._memory.reports.owns(self._executor, self):
            self._memory.reports.disconnect(self._executor, self, self._clock.monotonic())
            self._upkeep.left(self._executor)

    async def _snapshot(self, snapshot: pb.Snapshot) -> int:
        """A cache of which something is known is replaced in one go, so that it is not half forgotten in the
        meantime. What is new, as everything is after a restart, comes in parts."""
        self._wanted = False
        self._upkeep.renewed(self._executor, self.ask_again)
        known: list[pb.PoolBlocks] = []
        new: list[pb.PoolBlocks] = []
        for pool in snapshot.pools:
            (known if self._memory.index.size(self._executor, pool.pool) else new).append(pool)
        states = list(map(wire.cache_from_proto, known))
        await self._turn(sum(len(hashes) for state in states for _tier, hashes in state.tiers()))
        self._compare(states)
        states += [CacheState(wire.info_from_proto(pool), ()) for pool in new]
        refused = self._memory.snapshot(self._executor, snapshot.sequence, states)
        for pool in new:
            for part in wire.stored_from_proto(pool, TURN_BLOCKS):
                await self._turn(len(part.hashes))
                refused += self._memory.more(self._executor, [(pool.pool, part)])[1]
        return refused

    async def _events(self, batch: pb.BlockEvents) -> int:
        if any(event.WhichOneof("kind") is None for event in batch.events):
            raise _missing("events.events.kind")
        verdict, refused = self._memory.events(self._executor, batch.sequence, ())
        if verdict is Verdict.TAKE:
            for blocks, changes in _parts(batch):
                await self._turn(blocks)
                verdict, more = self._memory.more(self._executor, changes)
                refused += more
                if verdict is not Verdict.TAKE:
                    break
        if verdict is Verdict.ASK:
            log.warning("block events missed", executor=self._executor)
            self._upkeep.observer.gap(self._executor)
            self._wanted, self._checking = True, False
        return refused

    def _compare(self, states: list[CacheState]) -> None:
        """A snapshot that was asked for without need must say what the index says."""
        checking, self._checking = self._checking, False
        if not checking or not self._memory.reports.executors[self._executor].whole:
            return
        for state in states:
            blocks = {block for _tier, hashes in state.tiers() for block in hashes}
            indexed = self._memory.index.size(self._executor, state.info.pool)
            if len(blocks) != indexed and len(blocks) < MESSAGE_HASHES:  # else more of it comes as events
                cache = f"{state.info.pool} on {self._executor}"
                self._upkeep.fault("index", f"{indexed} blocks of {cache}, which has {len(blocks)}")

    async def _turn(self, blocks: int) -> None:
        await self._turns.turn(blocks)
        self._check_newest()

    def _check_newest(self) -> None:
        if not self._memory.reports.owns(self._executor, self):
            raise StageUnavailable(f"{self._executor} has a newer stream")


def _parts(batch: pb.BlockEvents) -> Iterator[tuple[int, list[tuple[str, BlockEvent]]]]:
    """Changes with their pools, as many as fit into a turn, and what they count for there."""
    blocks, changes = 0, list[tuple[str, BlockEvent]]()
    for event in batch.events:
        for part in wire.events_from_proto(event, TURN_BLOCKS):
            more = len(part.hashes) + 1
            if changes and blocks + more > TURN_BLOCKS:
                yield blocks, changes
                blocks, changes = 0, []
            blocks += more
            changes.append((event.pool, part))
    yield blocks, changes


def _missing(field: str) -> RequestInvalid:
    return RequestInvalid.of([Violation(field, "is required")])
