"""Mixes: what is made of a trace, and that the same seed makes the same."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from libs.lane.work import Tier
from services.simulator.mix import Mix, Tenant, arrivals, shared_blocks, tenants
from services.simulator.trace import Request, Trace

SYSTEM = 0
REQUESTS = [Request(float(i), 1300 + i, 10 + i, (SYSTEM, 1 + i // 2, 1000 + i)) for i in range(200)]
"""Pairs of turns: two requests each share their second block."""
TRACE = Trace("mooncake", 512, REQUESTS)


def test_without_anything_the_arrivals_are_those_of_the_trace() -> None:
    made = arrivals(TRACE, Mix(), 512)
    assert [(each.at, each.prompt_tokens, each.output_tokens, each.block_hashes) for each in made] == [
        (each.at_s, each.prompt_tokens, each.output_tokens, each.prefix) for each in REQUESTS
    ]
    assert {(each.tenant, each.tier, each.adapter) for each in made} == {("default", Tier.INTERACTIVE, "")}


def test_a_rate_compresses_time_and_nothing_else() -> None:
    slow, fast = (arrivals(TRACE, Mix(rate=rate, async_share=0.5), 512) for rate in (1.0, 4.0))
    assert [each.at / 4 for each in slow] == [each.at for each in fast]
    assert [replace(each, at=0.0) for each in slow] == [replace(each, at=0.0) for each in fast]


def test_requests_per_second_are_what_was_asked_for() -> None:
    made = arrivals(TRACE, Mix(requests_per_s=5.0), 512)
    assert len(made) / (made[-1].at - made[0].at) == pytest.approx(5.0)
    many = arrivals(TRACE, Mix(requests_per_s=5.0, copies=0), 512)
    assert len(many) == 5 * len(REQUESTS)
    assert len(many) / (many[-1].at - many[0].at) == pytest.approx(5.0)


def test_copies_share_the_system_prompt_alone() -> None:
    made = arrivals(TRACE, Mix(copies=3), 512)
    assert len(made) == 3 * len(REQUESTS)
    assert [each.at for each in made] == sorted(each.at for each in made)
    seen = Counter(block for each in made for block in each.block_hashes)
    assert seen[SYSTEM] == 3 * len(REQUESTS)
    assert {count for block, count in seen.items() if block != SYSTEM} == {1, 2}, "a copy met another's prefix"


def test_the_system_prompt_is_what_all_begin_with() -> None:
    assert shared_blocks(REQUESTS) == 1
    assert shared_blocks([*REQUESTS, Request(0, 5, 5, (9,))]) == 0
    assert shared_blocks([*REQUESTS, Request(0, 5, 5)]) == 0


def test_a_conversation_keeps_its_tenant_tier_and_adapter() -> None:
    made = arrivals(TRACE, Mix(tenants=tenants("4:zipf"), async_share=0.5, adapters=3), 512)
    casts = defaultdict(set)
    for each in made:
        casts[each.prompt_tokens // 2].add((each.tenant, each.tier, each.adapter))
    assert {len(cast) for cast in casts.values()} == {1}
    assert len({each.tenant for each in made}) == 4
    assert {each.adapter for each in made} == {"adapter-1", "adapter-2", "adapter-3"}


def test_adapters_share_no_prefix_not_even_the_system_prompt() -> None:
    users = defaultdict(set)
    for each in arrivals(TRACE, Mix(adapters=3, copies=2), 512):
        for block in each.block_hashes:
            users[block].add(each.adapter)
    assert {len(adapters) for adapters in users.values()} == {1}


def test_shares_are_those_asked_for() -> None:
    lone = Trace("azure", 0, [Request(float(i), 10, 10) for i in range(20_000)])
    made = arrivals(lone, Mix(tenants=tenants("a=3,b=1:2"), async_share=0.2), 64)
    counts = Counter(each.tenant for each in made)
    assert counts["a"] / len(made) == pytest.approx(0.75, abs=0.02)
    assert {each.weight for each in made if each.tenant == "b"} == {2.0}
    assert sum(each.tier is Tier.ASYNC for each in made) / len(made) == pytest.approx(0.2, abs=0.02)


def test_cuts_are_in_the_traces_own_time() -> None:
    assert len(arrivals(TRACE, Mix(first_s=10.0, rate=2.0), 512)) == 10
    assert len(arrivals(TRACE, Mix(requests=7), 512)) == 7


def test_spreading_moves_arrivals_forward_by_no_more() -> None:
    burst = Trace("azure", 0, [Request(3.0 * (i // 100), 10 + i, 10) for i in range(200)])
    made = sorted(arrivals(burst, Mix(spread_s=3.0), 64), key=lambda each: each.prompt_tokens)
    moved = [each.at - made[0].at for each in made]
    assert len(set(moved)) == 200
    assert max(moved) - min(moved) < 6.0


def test_smaller_blocks_cut_those_of_the_trace() -> None:
    trace = Trace("mooncake", 512, [Request(0, 1000, 1, (0, 3)), Request(1, 600, 1, (0, 4))])
    first, second = arrivals(trace, Mix(), 128)
    assert first.block_hashes == (0, 1, 2, 3, 12, 13, 14, 15)
    assert second.block_hashes == (0, 1, 2, 3, 16)
    for block_tokens in (100, 1024):
        with pytest.raises(ValueError, match="no whole part"):
            arrivals(trace, Mix(), block_tokens)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    mix = Mix(copies=3, tenants=tenants("8"), async_share=0.3, adapters=2, spread_s=1.0, seed=5)
    assert arrivals(TRACE, mix, 512) == arrivals(TRACE, mix, 512)
    assert arrivals(TRACE, mix, 512) != arrivals(TRACE, replace(mix, seed=6), 512)


def test_tenants_are_read() -> None:
    assert tenants("2") == (Tenant("tenant-1", 1.0), Tenant("tenant-2", 1.0))
    assert [each.share for each in tenants("3:zipf")] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert tenants("big=100, small=1:0.5") == (Tenant("big", 100.0), Tenant("small", 1.0, 0.5))
    for wrong in ("0", "3:even", "a", "a=", "=1", "a=0", "a=1,a=2", "a=inf", "a=1:nan"):
        with pytest.raises(ValueError):
            tenants(wrong)


def test_everything_wrong_with_a_mix_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"rate is above 0.*copies.*share of async.*at least one tenant"):
        arrivals(TRACE, Mix(rate=0, copies=0, async_share=2, tenants=()), 512)
    with pytest.raises(ValueError, match="no request of the trace is left"):
        arrivals(Trace("azure", 0, []), Mix(), 64)
    moment = Trace("azure", 0, [Request(0, 1, 1), Request(0, 1, 1)])
    with pytest.raises(ValueError, match="one moment"):
        arrivals(moment, Mix(requests_per_s=1), 64)
