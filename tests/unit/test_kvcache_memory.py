"""Reports and memory: gaps, snapshots, streams that supersede each other, leases."""

import pytest

from libs.errors import Overloaded
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.values import BlockEvent, CacheInfo, CacheState, Exactness, PrefixMatch, Question, Reservation
from services.kvcache import memory as module
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.memory import CacheView, Expired, Memory
from services.kvcache.reports import Reports, Verdict

P = CacheInfo("p", 100, 16, Exactness.EXACT)
Q = CacheInfo("q", 50, 32, Exactness.MODELLED)


def memory() -> Memory:
    return Memory(PrefixIndex(), Ledger(grace_s=10.0), Reports(grace_s=10.0, max_executors=2))


def reporting(*states: CacheState) -> tuple[Memory, object]:
    one, stream = memory(), object()
    one.executor_connected("e", stream)
    one.snapshot("e", 1, states or [CacheState(P, [1, 2])])
    return one, stream


def stored(*hashes: int) -> tuple[str, BlockEvent]:
    return "p", BlockEvent("stored", hashes)


def test_events_in_order_are_taken_in() -> None:
    one, _stream = reporting()
    assert one.events("e", 2, [stored(3)]) == (Verdict.TAKE, 0)
    assert one.events("e", 2, [stored(9)]) == (Verdict.DROP, 0)
    assert one.ask("b", Question(1, "p", [1, 2, 3, 9])).matches == [PrefixMatch("e", 3)]


def test_a_gap_asks_once_and_a_snapshot_heals_it() -> None:
    one, _stream = reporting()
    assert one.events("e", 3, [stored(3)])[0] is Verdict.ASK
    assert one.events("e", 4, [stored(4)])[0] is Verdict.DROP
    one.snapshot("e", 5, [CacheState(P, [1, 2, 3, 4])])
    assert one.events("e", 6, [stored(5)])[0] is Verdict.TAKE
    assert one.ask("b", Question(1, "p", [1, 2, 3, 4, 5])).matched("e") == 5


def test_events_before_a_snapshot_and_of_unknown_pools_are_gaps() -> None:
    one = memory()
    one.executor_connected("e", object())
    assert one.events("e", 1, [stored(1)])[0] is Verdict.ASK
    one.snapshot("e", 2, [CacheState(P, [])])
    assert one.events("e", 3, [("q", BlockEvent("stored", (1,)))])[0] is Verdict.ASK


def test_a_pool_that_left_is_forgotten() -> None:
    one, _stream = reporting(CacheState(P, [1]), CacheState(Q, [1]))
    one.snapshot("e", 2, [CacheState(Q, [1])])
    assert one.ask("b", Question(1, "p", [1])).matches == []
    assert not one.ask("b", Question(1, "p", [], "e", 1)).reserved
    assert [view.info for view in one.caches()] == [Q]


def test_only_the_newest_report_counts() -> None:
    one, old = reporting()
    new = object()
    one.executor_connected("e", new)
    assert not one.reports.owns("e", old)
    one.reports.disconnect("e", old, now=0.0)
    assert one.expire(100.0) == Expired([], [])
    one.reports.disconnect("e", new, now=0.0)
    assert one.expire(9.0) == Expired([], [])
    assert one.ask("b", Question(1, "p", [1, 2])).matched("e") == 2
    assert one.expire(10.0) == Expired([], ["e"])
    assert one.caches() == []
    assert one.ask("b", Question(1, "p", [1, 2])).matches == []


def test_only_the_newest_batcher_stream_counts() -> None:
    one, _stream = reporting()
    old, new = object(), object()
    one.batcher_connected("b", old, [])
    assert one.ask("b", Question(7, "p", [], "e", 60)).reserved
    one.batcher_connected("b", new, [Reservation(7, "e", "p", 60)])
    one.batcher_disconnected("b", old, now=0.0)
    assert one.expire(100.0) == Expired([], [])
    one.batcher_disconnected("b", new, now=100.0)
    assert one.caches()[0].reserved == 60
    assert one.expire(110.0) == Expired(["b"], [])
    assert one.caches() == [CacheView("e", P, reserved=0, indexed=2, live=True)]


def test_claims_after_a_restart_count_before_any_executor_reports() -> None:
    one = memory()
    one.batcher_connected("b", object(), [Reservation(7, "e", "p", 60)])
    one.executor_connected("e", object())
    one.snapshot("e", 1, [CacheState(P, [])])
    answer = one.ask("c", Question(1, "p", [], "e", 41))
    assert (answer.reserved, answer.free_blocks) == (False, 40)


def test_the_executor_asked_about_is_never_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MATCHES", 1)
    one, _stream = reporting()
    one.index.apply("a", "p", [BlockEvent("stored", (1, 2, 3))])
    answer = one.ask("b", Question(1, "p", [1, 2, 3], "e", 10))
    assert answer.matches == [PrefixMatch("a", 3), PrefixMatch("e", 2)]
    assert (answer.reserved, answer.free_blocks) == (True, 90)


def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCHERS", 1)
    one, _stream = reporting()
    one.executor_connected("f", object())
    one.executor_connected("e", object())
    with pytest.raises(Overloaded):
        one.executor_connected("g", object())
    one.batcher_connected("b", object(), [])
    one.batcher_connected("b", object(), [])
    with pytest.raises(Overloaded):
        one.batcher_connected("c", object(), [])


def test_the_mirror_follows_events() -> None:
    mirror = CacheMirror(P)
    mirror.apply([BlockEvent("stored", (1, 2, 3)), BlockEvent("removed", (2,))])
    assert sorted(mirror.state().hashes) == [1, 3]
    mirror.apply([BlockEvent("cleared"), BlockEvent("stored", (4,))])
    assert mirror.state() == CacheState(P, [4])
