"""A tenant's limits in one process, and what processes tell each other."""

import pytest

from libs.errors import QuotaExceeded
from services.admission.limits.account import Demand
from services.admission.limits.limits import MOST_ACCOUNTS, MOST_TOLD, Limits, Standing, Ticket, moved
from services.admission.limits.slots import RIPE_S, Slots
from services.admission.policy import Tenant

TOKENS = Tenant("t", tokens_per_min=6000)
"""100 per second."""


def pass_through(limits: Limits, tenant: Tenant, tokens: int, now: float) -> Ticket:
    limits.knock(tenant, now)
    return limits.enter(tenant, tokens, now)


def refusal(limits: Limits, tenant: Tenant, tokens: int, now: float) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as raised:
        pass_through(limits, tenant, tokens, now)
    return raised.value


def subjects(error: QuotaExceeded) -> list[str]:
    return [violation.subject for violation in error.violations]


def test_without_limits_everything_goes_in_and_is_counted() -> None:
    limits, tenant = Limits("a"), Tenant("free")
    tickets = [pass_through(limits, tenant, 10_000, 0.0) for _ in range(100)]
    assert limits.running("free") == 100
    for ticket in tickets:
        limits.settle(ticket, 5, 1.0)
    assert limits.running("free") == 0
    assert limits.tell(1.0) == {}, "nobody needs to know"
    assert limits.stats("free", 1.0).tokens_per_min_allowed == 0


def test_one_seconds_worth_of_requests_may_come_at_once() -> None:
    limits, tenant = Limits("a"), Tenant("t", requests_per_s=5)
    for _ in range(5):
        limits.knock(tenant, 0.0)
    error = refusal(limits, tenant, 1, 0.0)
    assert subjects(error) == ["tenant/t/requests_per_s"]
    assert error.retry_after_s == pytest.approx(0.2)
    limits.knock(tenant, 0.2)
    refusal(limits, tenant, 1, 0.3)


def test_less_than_one_request_per_second() -> None:
    limits, tenant = Limits("a"), Tenant("t", requests_per_s=0.5)
    limits.knock(tenant, 0.0)
    assert refusal(limits, tenant, 1, 1.0).retry_after_s == pytest.approx(1.0)
    limits.knock(tenant, 2.0)


def test_a_long_answer_is_reserved_whole_and_what_is_left_given_back() -> None:
    limits = Limits("a")
    ticket = pass_through(limits, TOKENS, 1000, 0.0)
    error = refusal(limits, TOKENS, 1, 2.0)
    assert subjects(error) == ["tenant/t/tokens_per_min"]
    assert error.retry_after_s == pytest.approx(8.0)
    limits.settle(ticket, 250, 2.0)
    assert refusal(limits, TOKENS, 1, 2.0).retry_after_s == pytest.approx(0.5)
    pass_through(limits, TOKENS, 1, 2.5)


def test_what_is_told_to_wait_is_the_truth() -> None:
    limits, now = Limits("a"), 0.0
    pass_through(limits, TOKENS, 777, now)
    for tokens in (333, 1, 5000, 42):
        wait_s = refusal(limits, TOKENS, tokens, now).retry_after_s
        assert wait_s is not None
        refusal(limits, TOKENS, tokens, now + 0.99 * wait_s)
        now += wait_s
        pass_through(limits, TOKENS, tokens, now)


def test_a_quiet_minute_is_worth_no_more_than_a_second() -> None:
    limits = Limits("a")
    limits.settle(pass_through(limits, TOKENS, 10, 0.0), 10, 0.0)
    passed = 0
    while True:
        try:
            pass_through(limits, TOKENS, 10, 600.0)
        except QuotaExceeded:
            break
        passed += 10
    assert passed == 110


def test_nothing_given_back_makes_more_than_a_second() -> None:
    limits = Limits("a")
    ticket = pass_through(limits, TOKENS, 100_000, 0.0)
    limits.settle(ticket, 0, 500.0)
    assert limits.broken(TOKENS, 500.0) == []
    pass_through(limits, TOKENS, 101, 500.0)
    assert subjects(refusal(limits, TOKENS, 1, 500.0))


def test_requests_in_flight() -> None:
    limits, tenant = Limits("a"), Tenant("t", max_concurrency=2)
    first = pass_through(limits, tenant, 1, 0.0)
    pass_through(limits, tenant, 1, 0.0)
    error = refusal(limits, tenant, 1, 0.0)
    assert subjects(error) == ["tenant/t/max_concurrency"]
    assert error.retry_after_s == pytest.approx(0.5), "two that take a second each, as far as is known"
    limits.settle(first, 1, 4.0)
    pass_through(limits, tenant, 1, 4.0)


def test_a_refusal_names_every_limit_and_the_longest_wait() -> None:
    limits, tenant = Limits("a"), Tenant("t", requests_per_s=1, tokens_per_min=60, max_concurrency=1)
    pass_through(limits, tenant, 31, 0.0)
    error = refusal(limits, tenant, 1, 0.5)
    assert subjects(error) == ["tenant/t/requests_per_s", "tenant/t/tokens_per_min", "tenant/t/max_concurrency"]
    assert error.retry_after_s == pytest.approx(30.5)
    assert error.metadata == {"limits": "requests_per_s,tokens_per_min,max_concurrency"}
    assert limits.stats("t", 0.5).refused == 1


def test_two_that_knocked_together_do_not_both_get_the_last_place() -> None:
    limits, tenant = Limits("a"), Tenant("t", max_concurrency=1)
    limits.knock(tenant, 0.0)
    limits.knock(tenant, 0.0)
    limits.enter(tenant, 1, 0.0)
    with pytest.raises(QuotaExceeded):
        limits.enter(tenant, 1, 0.0)


def test_a_request_is_settled_once() -> None:
    limits = Limits("a")
    ticket = pass_through(limits, TOKENS, 5, 0.0)
    limits.settle(ticket, 5, 1.0)
    with pytest.raises(ValueError, match="settled before"):
        limits.settle(ticket, 5, 1.0)
    assert limits.running("t") == 0


def test_a_limit_that_changes_holds_from_the_next_request_on() -> None:
    limits = Limits("a")
    before = pass_through(limits, Tenant("t"), 500, 0.0)
    pass_through(limits, TOKENS, 100, 0.0)
    limits.settle(before, 1, 0.0)
    assert refusal(limits, TOKENS, 1, 0.0).retry_after_s == pytest.approx(1.0), "what had no limit gives nothing back"
    faster = Tenant("t", tokens_per_min=60_000)
    assert refusal(limits, faster, 1, 0.0).retry_after_s == pytest.approx(0.1)
    pass_through(limits, Tenant("t"), 1, 0.0)


# --- several processes ---------------------------------------------------------------------------


def told(**demands: Demand) -> dict[str, dict[str, Demand]]:
    return {instance: {"t": demand} for instance, demand in demands.items()}


def test_a_process_has_its_share() -> None:
    limits = Limits("a")
    limits.follow(told(a=Demand(0, 1000), b=Demand(0, 1000)), 0.0)
    pass_through(limits, TOKENS, 100, 0.0)
    assert refusal(limits, TOKENS, 1, 0.0).retry_after_s == pytest.approx(2.0)
    limits.follow(told(a=Demand(0, 1000), b=Demand(0, 20)), 0.0)
    assert refusal(limits, TOKENS, 1, 0.0).retry_after_s == pytest.approx(100 / 80)
    limits.follow(told(a=Demand(0, 1000)), 0.0)
    assert refusal(limits, TOKENS, 1, 0.0).retry_after_s == pytest.approx(1.0)


def test_what_nobody_asks_for_is_dealt_out_alike() -> None:
    limits = Limits("a")
    limits.follow({"a": {}, "b": {}, "c": {}, "d": {}}, 0.0)
    pass_through(limits, TOKENS, 1, 0.0)
    assert limits.stats("t", 0.0) == Standing(1.0, 60.0, 1500.0, 1, 0)


def test_a_process_that_nobody_has_heard_of_counts_itself() -> None:
    limits = Limits("z")
    limits.follow(told(a=Demand(0, 1000)), 0.0)
    pass_through(limits, TOKENS, 1, 0.0)
    assert 0 < limits.stats("t", 0.0).tokens_per_min_allowed < 60


def test_where_nothing_was_asked_for_the_wait_is_that_until_others_have_heard() -> None:
    limits = Limits("a")
    limits.follow(told(a=Demand(), b=Demand(0, 1000)), 0.0)
    pass_through(limits, TOKENS, 100, 0.0)
    assert refusal(limits, TOKENS, 1, 0.0).retry_after_s == pytest.approx(0.5 + 100 / 50)
    assert limits.tell(0.1)["t"].tokens_per_s > 50
    limits.follow(told(a=limits.tell(0.1)["t"], b=Demand(0, 1000)), 0.4)
    pass_through(limits, TOKENS, 1, 2.5)


def test_what_has_gone_elsewhere_is_soon_forgotten() -> None:
    limits = Limits("a")
    for number in range(300):
        limits.settle(limits.enter(Tenant("t", tokens_per_min=10**9), 10, number / 100), 10, number / 100)
    assert limits.tell(2.99)["t"].tokens_per_s == pytest.approx(1000, rel=0.1)
    assert limits.tell(3.5)["t"].tokens_per_s < 100


def test_slots_move_to_where_requests_come() -> None:
    tenant = Tenant("t", max_concurrency=4)
    a, b = Limits("a"), Limits("b")
    for each in (a, b):
        each.follow({"a": {}, "b": {}}, 0.0)
    for _ in range(2):
        pass_through(a, tenant, 1, 0.0)
    refusal(a, tenant, 1, 0.0)
    for now in (0.1, 0.2):
        said = {"a": a.tell(now), "b": b.tell(now)}
        for each in (a, b):
            each.follow(said, now)
    refusal(a, tenant, 1, 0.2)
    pass_through(a, tenant, 1, 1.0)
    pass_through(a, tenant, 1, 1.0)
    refusal(a, tenant, 1, 1.0)


def test_a_slot_that_is_still_held_elsewhere_is_waited_for() -> None:
    tenant = Tenant("t", max_concurrency=4)
    limits = Limits("b")
    limits.follow(told(a=Demand(5, 0, 4), b=Demand(5, 0, 0)), 0.0)
    refusal(limits, tenant, 1, 0.0)
    limits.follow(told(a=Demand(5, 0, 3), b=Demand(5, 0, 0)), 1.0)
    refusal(limits, tenant, 1, 1.0)
    pass_through(limits, tenant, 1, 2.0)
    refusal(limits, tenant, 1, 2.0)


def test_a_share_of_slots_falls_at_once_and_rises_late() -> None:
    slots = Slots()
    slots.set(4, 0.0)
    assert slots.at(0.0) == 4
    slots.set(2, 1.0)
    assert slots.at(1.0) == 2
    slots.set(6, 2.0)
    slots.set(5, 2.5)
    slots.set(7, 2.6)
    assert slots.at(2.0 + 0.99 * RIPE_S) == 2
    assert slots.at(2.0 + RIPE_S) == 5, "the least that it was to be meanwhile"
    assert slots.at(2.0 + 2 * RIPE_S) == 7
    slots.set(0, 9.0)
    slots.set(1, 9.1)
    assert slots.at(9.2) == 0


def test_a_single_slot_is_wherever_it_is_asked_for() -> None:
    tenant = Tenant("t", max_concurrency=1)
    limits = Limits("c")
    limits.follow({"a": {}, "b": {}, "c": {}}, 0.0)
    ticket = pass_through(limits, tenant, 1, 0.0)
    limits.settle(ticket, 1, 0.1)
    limits.follow(told(a=Demand(1, 1, 1), b=Demand(), c=Demand()), 0.2)
    refusal(limits, tenant, 1, 0.2)


def test_those_that_ask_for_the_most_are_told_of() -> None:
    limits = Limits("a")
    for number in range(MOST_TOLD + 50):
        tenant = Tenant(f"t{number}", tokens_per_min=6000)
        pass_through(limits, tenant, 1 + number, 0.0)
    said = limits.tell(0.0)
    assert len(said) == MOST_TOLD
    assert "t249" in said
    assert "t0" not in said
    assert limits.tell(200.0) == {}, "their requests run on, and ask for nothing more"


def test_a_tenant_that_stays_away_is_not_told_of() -> None:
    limits = Limits("a")
    limits.settle(pass_through(limits, TOKENS, 100, 0.0), 100, 1.0)
    assert limits.tell(1.0)["t"].tokens_per_s > 25
    assert "t" not in limits.tell(70.0)
    assert limits.stats("nobody", 0.0) == Standing()


def test_idle_tenants_are_forgotten_when_there_are_too_many() -> None:
    limits = Limits("a")
    ticket = pass_through(limits, TOKENS, 1, 0.0)
    for number in range(MOST_ACCOUNTS + 5):
        limits.knock(Tenant(f"n{number}"), 1.0 + number)
    limits.tell(1e6)
    assert len(list(limits.tenants)) == MOST_ACCOUNTS
    assert "t" in limits.tenants, "it is in flight"
    assert "n0" not in limits.tenants
    limits.settle(ticket, 1, 1e6)


@pytest.mark.parametrize(
    ("one", "other", "news"),
    [
        ({}, {}, False),
        ({"t": Demand(1, 1, 1)}, {}, True),
        ({}, {"t": Demand(1, 1, 1)}, True),
        ({"t": Demand(100, 100, 10)}, {"t": Demand(95, 105, 10)}, False),
        ({"t": Demand(100, 100, 10)}, {"t": Demand(80, 100, 10)}, True),
        ({"t": Demand(100, 100, 10)}, {"t": Demand(100, 130, 10)}, True),
        ({"t": Demand(100, 100, 1)}, {"t": Demand(100, 100, 2)}, True),
    ],
)
def test_what_is_worth_telling(one: dict[str, Demand], other: dict[str, Demand], news: bool) -> None:
    assert moved(one, other) is news
