"""The KV-cache manager and its two clients over real servers: gaps, restarts, leases, claims."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs.clock import ManualClock
from libs.kvcache import consult, report
from libs.kvcache.consult import Consultation
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.report import Reporter
from libs.kvcache.values import Answer, BlockEvent, CacheInfo, CacheTier, Exactness, PrefixMatch, Question
from libs.rpc import interceptors
from libs.rpc.channels import Channels
from libs.rpc.server import RpcServer
from libs.streams.client import Dialer
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.memory import Memory
from services.kvcache.reporting import TURN_BLOCKS
from services.kvcache.reports import Reports
from services.kvcache.service import KvCacheServicer
from services.kvcache.trust import COMPARISONS, Told
from services.kvcache.upkeep import IDLE_S, INDEX_S, RENEW_S, Observer

GRACE_S = 10.0
PATIENT_S = 5.0
"""A budget for questions whose answer a test waits for, however busy the machine is."""


class Heard(Observer):
    def __init__(self) -> None:
        self.gaps = 0
        self.faults = 0
        self.distrusts: list[str] = []

    def gap(self, executor: str) -> None:
        self.gaps += 1

    def distrusted(self, executor: str) -> None:
        self.distrusts.append(executor)

    def fault(self) -> None:
        self.faults += 1


class Manager:
    """A KV-cache manager that can be killed and started again."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.spans: list[SpanRecord] = []
        self.channels = Channels()
        self.dialer = Dialer()
        self.endpoint: str | None = None
        self.heard = Heard()
        self._server: RpcServer | None = None

    async def start(self) -> None:
        self.memory = Memory(PrefixIndex(), Ledger(grace_s=GRACE_S), Reports(grace_s=GRACE_S))
        tracing = Tracing("kvcache", "kvcache-0", 1.0, self.spans.append)
        self.servicer = KvCacheServicer(self.memory, self.clock, tracing, self.heard)
        streams = self.servicer.streams
        self._server = RpcServer("127.0.0.1:0", [self.servicer.service], [interceptors.errors], None, streams)
        await self._server.start()
        self.endpoint = f"127.0.0.1:{self._server.port}"

    async def kill(self) -> None:
        """Nothing is said to anybody: the connections break."""
        if self._server is not None:
            server, self._server, self.endpoint = self._server, None, None
            await server.stop()

    @property
    def stub(self) -> "kvcache_pb2_grpc.KvCacheServiceAsyncStub":
        assert self._server is not None
        stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(
            self.channels.connect(f"127.0.0.1:{self._server.port}")
        )
        return stub

    @property
    def streams(self) -> "kvcache_pb2_grpc.KvCacheStreamServiceAsyncStub":
        """By grpc.aio: the streams' wire is gRPC's."""
        assert self.endpoint is not None
        return kvcache_pb2_grpc.KvCacheStreamServiceStub(self.channels.connect(self.endpoint))  # type: ignore[return-value]

    async def caches(self) -> list[pb.Cache]:
        return list((await self.stub.ListCaches(pb.ListCachesRequest(), timeout=5)).caches)


class Executor:
    """An executor's report, and the cache behind it."""

    def __init__(self, manager: Manager, name: str = "e", capacity: int = 100) -> None:
        self.mirror = CacheMirror(CacheInfo("p", capacity, 16, Exactness.EXACT))
        self.snapshots = 0
        self.reporter = Reporter(name, self._snapshot, manager.dialer, lambda: manager.endpoint)

    def _snapshot(self) -> Sequence[Any]:
        self.snapshots += 1
        return [self.mirror.state()]

    def store(self, *hashes: int) -> None:
        self.change(BlockEvent("stored", hashes))

    def change(self, *events: BlockEvent) -> None:
        self.mirror.apply(events)
        self.reporter.push("p", events)


@asynccontextmanager
async def managing() -> AsyncIterator[Manager]:
    """A manager that has started."""
    one = Manager()
    await one.start()
    yield one
    await one.kill()
    await one.channels.close()


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    async with managing() as one:
        yield one


@pytest.fixture
async def executor(manager: Manager) -> AsyncIterator[Executor]:
    one = Executor(manager)
    await until(lambda: manager.memory.reports.executors["e"].whole if manager.memory.reports.executors else False)
    yield one
    await one.reporter.close()


@pytest.fixture
async def batcher(manager: Manager) -> AsyncIterator[Consultation]:
    one = Consultation("b", manager.dialer, lambda: manager.endpoint, budget_s=PATIENT_S)
    await until(lambda: one.up)
    yield one
    await one.close()


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def indexed(manager: Manager, count: int, executor: str = "e") -> Callable[[], bool]:
    return lambda: manager.memory.index.size(executor, "p") == count


def reserved(manager: Manager, count: int) -> Callable[[], bool]:
    return lambda: manager.memory.ledger.reserved("e", "p") == count


async def test_what_is_stored_is_found_and_reserved(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    executor.store(1, 2, 3)
    executor.change(BlockEvent("removed", (3,)), BlockEvent("stored", (4,)))
    await until(indexed(manager, 3))
    answer = await batcher.answer(Question(1, "p", [1, 2, 3], "e", 30))
    assert answer == Answer([PrefixMatch("e", 2)], reserved=True, free_blocks=70)
    assert batcher.held == 1
    (cache,) = await manager.caches()
    assert cache == pb.Cache(
        executor="e", pool="p", capacity=100, reserved=30, indexed=3, block_tokens=16,
        exactness=pb.EXACTNESS_EXACT, live=True, trusted=True, accuracy=1.0,
    )  # fmt: skip
    refused = await batcher.answer(Question(2, "p", [1], "e", 71))
    assert refused == Answer([PrefixMatch("e", 1)], reserved=False, free_blocks=70)
    batcher.release(1)
    await until(reserved(manager, 0))
    assert batcher.held == 0


async def test_questions_that_accumulate_share_messages(manager: Manager, batcher: Consultation) -> None:
    answers = await asyncio.gather(*(batcher.answer(Question(i, "p", [i])) for i in range(2000)))
    assert answers == [Answer([], reserved=False, free_blocks=0)] * 2000


async def test_a_gap_makes_a_snapshot(manager: Manager, executor: Executor) -> None:
    executor.store(1)
    await until(indexed(manager, 1))
    executor.reporter._sequence += 1  # a batch is lost
    executor.store(2)
    executor.store(3)
    await until(indexed(manager, 3))
    assert manager.heard.gaps == 1
    assert executor.snapshots == 2


async def test_a_restart_is_whole_again(manager: Manager, executor: Executor, batcher: Consultation) -> None:
    executor.store(1, 2)
    await until(indexed(manager, 2))
    assert (await batcher.answer(Question(1, "p", [], "e", 60))) == Answer([], True, 40)
    await manager.kill()
    await until(lambda: not batcher.up and not executor.reporter.up)
    executor.store(3)
    assert await batcher.answer(Question(2, "p", [1], "e", 10)) is None
    await manager.start()
    await until(indexed(manager, 3))
    await until(reserved(manager, 60))
    answer = await batcher.answer(Question(3, "p", [1, 2, 3], "e", 41))
    assert answer == Answer([PrefixMatch("e", 3)], reserved=False, free_blocks=40)


async def test_the_reservations_of_a_dead_batcher_lapse(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    await batcher.answer(Question(1, "p", [], "e", 60))
    await batcher.close()
    await until(lambda: not manager.memory._batchers)
    manager.clock.advance(GRACE_S - 1)
    assert (await manager.caches())[0].reserved == 60
    manager.clock.advance(1)
    assert (await manager.caches())[0].reserved == 0


async def test_a_batcher_that_reconnects_claims_what_it_holds(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    await batcher.answer(Question(1, "p", [], "e", 60))
    await batcher.answer(Question(2, "p", [], "e", 20))
    batcher._stream.restart()
    await until(lambda: not batcher.up)
    batcher.release(2)
    await until(lambda: batcher.up)
    await until(reserved(manager, 60))
    manager.clock.advance(GRACE_S * 10)
    assert (await manager.caches())[0].reserved == 60


async def test_a_restarted_batcher_holds_nothing(manager: Manager, executor: Executor, batcher: Consultation) -> None:
    await batcher.answer(Question(1, "p", [], "e", 60))
    other = Consultation("b", manager.dialer, lambda: manager.endpoint)
    await until(reserved(manager, 0))
    await until(lambda: other.up)
    await other.close()


async def test_without_an_answer_in_time_it_goes_on_and_nothing_leaks(
    manager: Manager, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Consultation("late", manager.dialer, lambda: manager.endpoint, budget_s=0.0)
    await until(lambda: batcher.up)
    assert await batcher.answer(Question(1, "p", [], "e", 60)) is None
    assert batcher.held == 0
    batcher._budget_s = PATIENT_S
    everything = Question(2, "p", [], "e", 100)
    assert await batcher.answer(everything) == Answer([], True, 0), "what was granted too late is given back before"
    batcher.release(2)
    await until(reserved(manager, 0))
    await batcher.close()


async def test_a_reservation_grows_and_shrinks_and_a_refusal_leaves_it(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    assert await batcher.answer(Question(1, "p", [], "e", 60)) == Answer([], True, 40)
    assert await batcher.answer(Question(1, "p", [], "e", 101)) == Answer([], False, 40)
    assert await batcher.answer(Question(1, "p", [], "e", 90)) == Answer([], True, 10)
    assert await batcher.answer(Question(1, "p", [], "e", 20)) == Answer([], True, 80)
    batcher._stream.restart()
    await until(lambda: not batcher.up)
    await until(lambda: batcher.up)
    assert (await manager.caches())[0].reserved == 20
    batcher.release(1)
    await until(reserved(manager, 0))


async def test_growth_that_is_granted_too_late_is_undone(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    await batcher.answer(Question(1, "p", [], "e", 20))
    batcher._budget_s = 0.0
    assert await batcher.answer(Question(1, "p", [], "e", 60)) is None
    assert await batcher.answer(Question(1, "p", [], "e", 80)) is None
    batcher._budget_s = PATIENT_S
    assert await batcher.answer(Question(2, "p", [], "e", 80)) == Answer([], True, 0)
    batcher._stream.restart()
    await until(lambda: not batcher.up)
    await until(lambda: batcher.up)
    assert (await manager.caches())[0].reserved == 100
    batcher.release(1)
    batcher.release(2)
    await until(reserved(manager, 0))


async def test_answers_that_come_too_late_are_not_taken_for_later_ones(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    first: list[Answer | None] = []
    batcher.ask(Question(1, "p", [], "e", 200), first.append)
    while batcher._unsent:
        await asyncio.sleep(0)
    batcher.release(1)
    assert await batcher.answer(Question(1, "p", [], "e", 20)) == Answer([], True, 80)
    assert first == []
    assert not batcher._ignored


async def test_tiers_go_all_the_way(manager: Manager, executor: Executor, batcher: Consultation) -> None:
    executor.store(1, 2)
    executor.change(BlockEvent("stored", (2, 3), CacheTier.HOST), BlockEvent("stored", (4,), CacheTier.DISK))
    await until(indexed(manager, 4))
    assert (await batcher.answer(Question(1, "p", [1, 2, 3, 4]))) == Answer([PrefixMatch("e", 4, 1, 1)], False, 0)
    executor.change(BlockEvent("removed", (2,)), BlockEvent("removed", (4,), CacheTier.DISK))
    await until(indexed(manager, 3))
    expected = Answer([PrefixMatch("e", 3, 2, 0)], False, 0)
    assert (await batcher.answer(Question(2, "p", [1, 2, 3, 4]))) == expected
    executor.reporter.refresh()
    await until(lambda: executor.snapshots == 2 and not executor.reporter._snapshot_due)
    executor.store(9)
    await until(indexed(manager, 4))
    assert (await batcher.answer(Question(3, "p", [1, 2, 3, 4]))) == expected


async def test_an_engine_that_finds_less_than_promised_is_distrusted_and_asked_for_a_snapshot(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    executor.store(1, 2)
    await until(indexed(manager, 2))
    for number in range(COMPARISONS):
        await batcher.answer(Question(number, "p", [1, 2, 3], "e", 1))
        batcher.release(number, found_blocks=0)
    await until(lambda: executor.snapshots == 2)
    assert manager.heard.distrusts == ["e"]
    answer = await batcher.answer(Question(100, "p", [1, 2, 3], "e", 1))
    assert answer == Answer([], reserved=True, free_blocks=99)
    (cache,) = await manager.caches()
    assert not cache.trusted
    executor.store(3)
    await until(indexed(manager, 3))  # the snapshot is in
    for number in range(200, 200 + COMPARISONS):
        await batcher.answer(Question(number, "p", [1, 2, 3], "e", 1))
        batcher.release(number, found_blocks=2)
    await until(lambda: manager.memory.trust.told("e", "p") is Told.ALL)
    answer = await batcher.answer(Question(300, "p", [1, 2, 3], "e", 1))
    assert answer is not None
    assert answer.matched("e") == 3


async def test_a_sum_that_is_wrong_is_found_and_healed_once_nothing_is_asked(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    await batcher.answer(Question(1, "p", [], "e", 60))
    manager.memory.ledger._sums["e", "p"] = 95
    manager.servicer.upkeep.turn()
    assert (await batcher.answer(Question(2, "p", [], "e", 30))) == Answer([], False, 5)
    manager.clock.advance(IDLE_S)
    manager.servicer.upkeep.turn()
    assert manager.heard.faults == 1
    manager.memory.ledger.check_integrity()
    assert (await batcher.answer(Question(3, "p", [], "e", 30))) == Answer([], True, 10)


async def test_an_index_that_does_not_add_up_is_built_anew(manager: Manager, executor: Executor) -> None:
    executor.store(1, 2, 3)
    await until(indexed(manager, 3))
    manager.memory.index._pools["p"]._sizes[0] += 1
    manager.clock.advance(INDEX_S)
    manager.servicer.upkeep.turn()
    assert manager.heard.faults == 1
    await until(indexed(manager, 3))
    manager.memory.index.check_integrity()
    assert executor.snapshots == 2


async def test_caches_are_told_again_from_time_to_time_and_compared(manager: Manager, executor: Executor) -> None:
    executor.store(1, 2, 3)
    await until(indexed(manager, 3))
    manager.clock.advance(RENEW_S)
    manager.servicer.upkeep.turn()
    executor.store(4)
    await until(lambda: executor.snapshots == 2)
    executor.store(5)
    await until(indexed(manager, 5))
    assert manager.heard.faults == 0
    manager.memory.index.apply("e", "p", [BlockEvent("removed", (1,))])
    manager.clock.advance(RENEW_S)
    manager.servicer.upkeep.turn()
    await until(indexed(manager, 5))
    assert (manager.heard.faults, manager.heard.gaps, executor.snapshots) == (1, 0, 3)


async def test_many_executors_come_back_at_once_and_questions_are_answered_meanwhile(manager: Manager) -> None:
    executors = [Executor(manager, f"e{number}", capacity=5_000) for number in range(20)]
    for number, one in enumerate(executors):
        one.mirror.apply([BlockEvent("stored", range(number * 5_000, (number + 1) * 5_000))])
    batcher = Consultation("b", manager.dialer, lambda: manager.endpoint, budget_s=PATIENT_S)
    await until(lambda: batcher.up and all(one.reporter.up for one in executors))
    await manager.kill()
    await until(lambda: not batcher.up and not any(one.reporter.up for one in executors))
    await manager.start()
    await until(lambda: batcher.up)
    asked, prompt = 0, list(range(95_000, 95_512))
    while manager.memory.indexed < 100_000:
        assert await batcher.answer(Question(asked, "p", prompt)) is not None
        asked += 1
    manager.memory.index.check_integrity()
    assert await batcher.answer(Question(asked, "p", prompt)) == Answer([PrefixMatch("e19", 512)], False, 0)
    await batcher.close()
    for one in executors:
        await one.reporter.close()


async def test_a_question_that_is_cancelled_reserves_nothing(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    asking = asyncio.ensure_future(batcher.answer(Question(1, "p", [], "e", 60)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await batcher.answer(Question(2, "p", [], "e", 100))) == Answer([], True, 0)


async def test_too_many_questions_are_answered_at_once(batcher: Consultation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consult, "MAX_PENDING", 3)
    answers = await asyncio.gather(*(batcher.answer(Question(i, "p")) for i in range(5)))
    assert [answer is None for answer in answers] == [False, False, False, True, True]


async def test_changes_that_are_alike_are_told_as_one_and_in_their_order(executor: Executor) -> None:
    executor.store(1)
    executor.store(1, 2, 3)
    executor.change(BlockEvent("removed", (3,)), BlockEvent("removed", (2,)))
    executor.store(2)
    executor.change(BlockEvent("stored", (4,), CacheTier.HOST))
    told = executor.reporter.take()
    assert told is not None
    events = pb.ReportRequest.FromString(told).events.events
    assert [(list(event.stored.hashes), list(event.removed.hashes), CacheTier(event.tier)) for event in events] == [
        ([1, 1, 2, 3], [], CacheTier.DEVICE),
        ([], [3, 2], CacheTier.DEVICE),
        ([2], [], CacheTier.DEVICE),
        ([4], [], CacheTier.HOST),
    ]


async def test_too_many_events_become_a_snapshot(
    manager: Manager, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_PENDING", 50)
    executor.store(*range(40))
    executor.store(*range(40, 80))
    executor.change(BlockEvent("removed", (0,)))
    await until(indexed(manager, 79))
    assert executor.snapshots == 2
    assert manager.heard.gaps == 0


async def test_a_large_snapshot_comes_in_parts(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MESSAGE_HASHES", 30)
    executor = Executor(manager, "large", capacity=1000)
    executor.store(*range(100))
    await until(indexed(manager, 100, "large"))
    executor.store(*range(100, 200))
    await until(indexed(manager, 200, "large"))
    assert executor.snapshots == 1
    await executor.reporter.close()


async def test_events_beyond_a_turn_are_taken_in_turn_by_turn(
    manager: Manager, executor: Executor, batcher: Consultation
) -> None:
    chain = list(range(3 * TURN_BLOCKS))
    parts = [BlockEvent("stored", chain[start : start + 100]) for start in range(0, len(chain), 100)]
    executor.change(*parts, BlockEvent("stored", chain), BlockEvent("removed", chain[TURN_BLOCKS:]))
    await until(indexed(manager, TURN_BLOCKS))
    executor.change(*(BlockEvent("removed", (block,)) for block in chain[7:]))
    await until(indexed(manager, 7))
    assert await batcher.answer(Question(1, "p", chain[:9])) == Answer([PrefixMatch("e", 7)], False, 0)
    assert (executor.snapshots, manager.heard.gaps) == (1, 0)
    manager.memory.index.check_integrity()


async def test_a_dead_executor_is_forgotten_after_its_grace(manager: Manager, executor: Executor) -> None:
    executor.store(1)
    await until(indexed(manager, 1))
    await executor.reporter.close()
    await until(lambda: manager.memory.reports.executors["e"].stream is None)
    assert [cache.live for cache in await manager.caches()] == [False]
    manager.clock.advance(GRACE_S)
    assert await manager.caches() == []
    assert manager.memory.index.size("e", "p") == 0


async def test_a_shutdown_ends_the_streams_at_once(manager: Manager, executor: Executor, batcher: Consultation) -> None:
    old, manager.endpoint = manager.endpoint, None
    manager.servicer.close()
    await until(lambda: not batcher.up and not executor.reporter.up)
    manager.endpoint = old
    await until(lambda: batcher.up and executor.reporter.up)


async def test_the_streams_move_with_the_manager(manager: Manager, executor: Executor, batcher: Consultation) -> None:
    executor.store(1)
    await batcher.answer(Question(1, "p", [], "e", 60))
    successor = Manager()
    await successor.start()
    manager.endpoint = successor.endpoint
    await until(indexed(successor, 1))
    await until(reserved(successor, 60))
    await batcher.close()
    await executor.reporter.close()
    await successor.kill()


async def test_a_sampled_question_leaves_a_span(manager: Manager, executor: Executor, batcher: Consultation) -> None:
    executor.store(1)
    await until(indexed(manager, 1))
    trace = "0af7651916cd43dd8448eb211c80319c"
    await batcher.answer(Question(1, "p", [1], "e", 7, f"00-{trace}-b7ad6b7169203331-01"))
    await batcher.answer(Question(2, "p", [1], "e", 7, f"00-{trace}-b7ad6b7169203331-00"))
    await batcher.answer(Question(3, "p", [1], "e", 7))
    (span,) = manager.spans
    assert (span.name, span.trace_id, span.parent_id) == ("lookup", trace, "b7ad6b7169203331")
    assert span.attributes["headrace.blocks.matched"] == 1
    assert span.attributes["headrace.blocks.reserved"] == 7


async def test_streams_that_begin_wrong_are_refused(manager: Manager) -> None:
    consulting = manager.streams.Consult()
    await consulting.write(pb.ConsultRequest(releases=[pb.Release(id=1)]))
    await refused(consulting)
    for wrong in (
        pb.ReportRequest(),
        pb.ReportRequest(executor="e"),
        pb.ReportRequest(executor="e", events=pb.BlockEvents(sequence=1, events=[pb.BlockEvent(pool="p")])),
    ):
        reporting = manager.streams.Report()
        await reporting.write(wrong)
        await refused(reporting)


async def refused(call: Any) -> None:
    with pytest.raises(aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_half_closes_gets_its_answers(manager: Manager) -> None:
    call = manager.streams.Consult()
    await call.write(pb.ConsultRequest(batcher="x", questions=[pb.Question(id=i, pool="p") for i in range(5)]))
    await call.done_writing()
    answers = [answer.id async for message in call for answer in message.answers]
    assert answers == [0, 1, 2, 3, 4]
    assert await call.code() == grpc.StatusCode.OK


async def test_caches_come_in_pages(manager: Manager) -> None:
    executors = [Executor(manager, f"e{i}") for i in range(3)]
    await until(lambda: len(manager.memory.caches()) == 3)
    first = await manager.stub.ListCaches(pb.ListCachesRequest(page_size=2))
    second = await manager.stub.ListCaches(pb.ListCachesRequest(page_size=2, page_token=first.next_page_token))
    assert [cache.executor for cache in [*first.caches, *second.caches]] == ["e0", "e1", "e2"]
    assert second.next_page_token == ""
    for executor in executors:
        await executor.reporter.close()
