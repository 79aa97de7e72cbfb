"""Reports and memory: gaps, snapshots, streams that supersede each other, leases."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.v1 import policy_pb2
from libs.errors import Overloaded
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.values import (
    Answer,
    BlockEvent,
    CacheInfo,
    CacheState,
    CacheTier,
    Exactness,
    PrefixMatch,
    Question,
    Reservation,
)
from services.kvcache import memory as module
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.main import overcommits
from services.kvcache.memory import CacheView, Expired, Memory
from services.kvcache.reports import Reports, Verdict
from services.kvcache.trust import COMPARISONS, Drift, Told

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


def test_a_batch_is_taken_in_pool_by_pool_and_of_a_block_the_last_word_counts() -> None:
    one, _stream = reporting(CacheState(P, [1, 2]), CacheState(Q, [1]))
    batch = [
        stored(3), ("q", BlockEvent("stored", (2,))), ("p", BlockEvent("removed", (2, 3))), stored(2, 4, 5),
        ("q", BlockEvent("cleared")), ("p", BlockEvent("removed", (4,))), ("q", BlockEvent("stored", (7,))),
    ]  # fmt: skip
    assert one.events("e", 2, batch) == (Verdict.TAKE, 0)
    assert {block for block in range(9) if one.index.match("p", [block])} == {1, 2, 5}
    assert {block for block in range(9) if one.index.match("q", [block])} == {7}
    one.index.check_integrity()
    assert one.events("e", 3, [stored(6), ("r", BlockEvent("stored", (1,)))]) == (Verdict.ASK, 0)
    assert one.index.size("e", "p") == 3


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


def test_among_equals_each_answer_tells_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MATCHES", 3)
    one, _stream = reporting()
    one.index.apply("best", "p", [BlockEvent("stored", (1, 2, 3))])
    for number in range(6):
        one.index.apply(f"e{number}", "p", [BlockEvent("stored", (1, 2))])
    one.index.apply("short", "p", [BlockEvent("stored", (1,))])
    told: Counter[str] = Counter()
    for _ in range(7):
        first, *others = one.ask("b", Question(1, "p", [1, 2, 3])).matches
        assert first == PrefixMatch("best", 3)
        assert [match.blocks for match in others] == [2, 2]
        told.update(match.executor for match in others)
    assert told == {"e": 2, "e0": 2, "e1": 2, "e2": 2, "e3": 2, "e4": 2, "e5": 2}
    answer = one.ask("b", Question(2, "p", [1, 2, 3], "short", 1))
    assert len(answer.matches) == 4
    assert answer.matched("short") == 1


def test_of_a_prefix_that_many_hold_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MATCHES", 2)
    monkeypatch.setattr(module, "MAX_LOOKED", 3)
    one, _stream = reporting(CacheState(P, []))
    names = [f"e{number}" for number in range(8)]
    for name in names:
        one.index.apply(name, "p", [BlockEvent("stored", (1, 2))])
    for name in names[:4]:
        for _ in range(COMPARISONS):
            one.trust.promise("b", 1, "p", PrefixMatch(name, 2), 3)
            one.release("b", 1, 0)
    told: Counter[str] = Counter()
    for _ in range(8):
        matches = one.ask("b", Question(1, "p", [1, 2])).matches
        assert len(matches) <= 2
        told.update(match.executor for match in matches)
    assert set(told) == set(names[4:])
    assert one.ask("b", Question(2, "p", [1, 2, 3], "e0", 1)).matched("e0") == 0


def test_what_is_told_of_a_device_alone_comes_where_it_belongs() -> None:
    one, _stream = reporting(CacheState(P, [1], [2, 3]))
    one.index.apply("f", "p", [BlockEvent("stored", (1, 2))])
    for _ in range(COMPARISONS):
        one.trust.promise("b", 1, "p", PrefixMatch("e", 3, 2), 9)
        one.release("b", 1, 1)
    assert one.ask("b", Question(1, "p", [1, 2, 3])).matches == [PrefixMatch("f", 2), PrefixMatch("e", 1)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 59))
def test_however_many_hold_how_much_the_best_are_told_and_the_one_asked_about(held: list[int], asked: int) -> None:
    one, chain = memory(), [1, 2, 3, 4]
    for number, blocks in enumerate(held):
        one.index.snapshot(f"e{number}", "p", CacheState(P, chain[:blocks]))
    matches = one.ask("b", Question(1, "p", chain, f"e{asked}", 0)).matches
    best, others = matches[: module.MAX_MATCHES], matches[module.MAX_MATCHES :]
    expected = sorted(filter(None, held), reverse=True)[: module.MAX_MATCHES]
    assert [match.blocks for match in best] == expected
    assert all(match == PrefixMatch(match.executor, held[int(match.executor[1:])]) for match in matches)
    assert len({match.executor for match in matches}) == len(matches)
    assert not others or [match.executor for match in others] == [f"e{asked}"]
    known = held[asked] if asked < len(held) else 0
    assert next((match.blocks for match in matches if match.executor == f"e{asked}"), 0) == known


def test_a_resize_that_is_refused_leaves_what_was() -> None:
    one, _stream = reporting()
    assert one.ask("b", Question(1, "p", [1], "e", 60)).reserved
    assert one.ask("b", Question(1, "p", [], "e", 101)) == Answer([], reserved=False, free_blocks=40)
    assert one.ask("b", Question(1, "p", [], "e", 90)) == Answer([], reserved=True, free_blocks=10)
    assert one.trust.promised("b") == 1


def test_tiers_are_told_apart() -> None:
    one, _stream = reporting(CacheState(P, [1], [2, 3], [4]))
    assert one.ask("b", Question(1, "p", [1, 2, 3, 4, 5])).matches == [PrefixMatch("e", 4, 2, 1)]
    one.events("e", 2, [("p", BlockEvent("stored", (2,))), ("p", BlockEvent("removed", (4,), CacheTier.DISK))])
    assert one.ask("b", Question(1, "p", [1, 2, 3, 4, 5])).matches == [PrefixMatch("e", 3, 1, 0)]


def test_an_executor_that_does_not_hold_what_was_promised_is_left_out_until_it_does_again() -> None:
    one, _stream = reporting()
    one.index.apply("f", "p", [BlockEvent("stored", (1,))])
    question = Question(1, "p", [1, 2, 3], "e", 10)

    def work(found: int | None) -> Drift | None:
        assert one.ask("b", question).reserved
        return one.release("b", 1, found, 0.0)

    assert one.ask("b", question).matched("e") == 2
    one.release("b", 1)
    drifts = [drift for drift in (work(0) for _ in range(COMPARISONS)) if drift is not None]
    assert [(drift.told, drift.snapshot_wanted) for drift in drifts] == [(Told.NOTHING, True)]
    assert one.ask("b", question).matches == [PrefixMatch("f", 1)]
    one.release("b", 1)
    (view,) = one.caches()
    assert (view.trusted, view.accuracy) == (False, 0.0)
    one.snapshot("e", 2, [CacheState(P, [1, 2])])
    drifts = [drift for drift in (work(2) for _ in range(COMPARISONS)) if drift is not None]
    assert [drift.told for drift in drifts] == [Told.ALL]
    assert one.ask("b", question).matches == [PrefixMatch("e", 2), PrefixMatch("f", 1)]


def test_promises_go_with_lapsed_and_unclaimed_reservations_and_with_the_executor() -> None:
    one, stream = reporting()
    batcher = object()
    one.batcher_connected("b", batcher, [])
    for number in range(3):
        one.ask("b", Question(number, "p", [1, 2, 3], "e", 10))
    assert one.trust.promised("b") == 3
    one.batcher_connected("b", batcher, [Reservation(2, "e", "p", 10)])
    assert one.trust.promised("b") == 1
    one.batcher_disconnected("b", batcher, now=0.0)
    one.expire(10.0)
    assert one.trust.promised("b") == 0
    one.ask("b", Question(9, "p", [1, 2, 3], "e", 10))
    one.reports.disconnect("e", stream, now=10.0)
    one.expire(20.0)
    assert one.release("b", 9, 0, 20.0) is None
    assert one.trust._accounts == {}


def test_models_are_overcommitted_by_their_policies_and_others_by_the_default() -> None:
    one, _stream = reporting(CacheState(CacheInfo("m@1", 100, 16, Exactness.EXACT), []), CacheState(P, []))
    one.set_overcommits({"m": 1.5})
    assert (one.ledger.limit("e", "m@1"), one.ledger.limit("e", "p")) == (150, 100)
    one.set_overcommits({"m": 1.5, "default": 1.2})
    assert (one.ledger.limit("e", "m@1"), one.ledger.limit("e", "p")) == (150, 120)
    one.snapshot("e", 2, [CacheState(CacheInfo("m@2", 100, 16, Exactness.EXACT), [])])
    assert one.ledger.limit("e", "m@2") == 150
    assert set(one.ledger._overcommits) == {"m@2"}
    one.set_overcommits({})
    assert one.ledger.limit("e", "m@2") == 100


def test_a_policy_without_estimates_overcommits_nothing() -> None:
    estimate, whole = policy_pb2.RESERVE_POLICY_ESTIMATE, policy_pb2.RESERVE_POLICY_WHOLE
    policies = {
        "default": policy_pb2.Scheduling(reserve=estimate),
        "a": policy_pb2.Scheduling(reserve=estimate, overcommit=1.5),
        "b": policy_pb2.Scheduling(reserve=whole, overcommit=1.5),
        "c": policy_pb2.Scheduling(overcommit=0.8),
        "d": policy_pb2.Scheduling(reserve=estimate, overcommit=-1.0),
        "e": policy_pb2.Scheduling(reserve=estimate, overcommit=float("nan")),
    }
    assert overcommits(policies) == {"default": 1.0, "a": 1.5, "b": 1.0, "c": 0.8, "d": 1.0, "e": 1.0}


def test_the_mirror_follows_events_in_each_tier() -> None:
    mirror = CacheMirror(P)
    mirror.apply([BlockEvent("stored", (1, 2, 3)), BlockEvent("removed", (2,))])
    mirror.apply([BlockEvent("stored", (2, 3), CacheTier.HOST), BlockEvent("stored", (4,), CacheTier.DISK)])
    mirror.apply([BlockEvent("removed", (3, 4), CacheTier.HOST)])
    state = mirror.state()
    assert (sorted(state.hashes), state.host_hashes, state.disk_hashes) == ([1, 3], [2], [4])
    mirror.apply([BlockEvent("cleared"), BlockEvent("stored", (4,))])
    assert mirror.state() == CacheState(P, [4], [], [])
