"""Shares of a limit add up to it; when processes do not know the same, they are off by no more than what moved."""

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from libs.errors import QuotaExceeded
from services.admission.limits.account import BURST_S, Demand
from services.admission.limits.limits import Limits, Ticket
from services.admission.limits.shares import FLOOR, share, slots
from services.admission.policy import Tenant

WANTS = st.lists(st.floats(0, 1000), min_size=1, max_size=6)
LIMIT = st.floats(0.01, 1000)


@given(LIMIT, WANTS)
def test_shares_add_up_to_the_limit(limit: float, wants: list[float]) -> None:
    shares = [share(limit, wants, place) for place in range(len(wants))]
    assert abs(sum(shares) - limit) < 1e-9 * max(limit, 1)
    assert min(shares) >= FLOOR * limit / len(wants) * (1 - 1e-9)


@given(LIMIT, WANTS)
def test_nobody_has_more_than_it_asks_for_while_another_lacks(limit: float, wants: list[float]) -> None:
    shares = [share(limit, wants, place) for place in range(len(wants))]
    floor = FLOOR * limit / len(wants)
    lacking = [given for given, want in zip(shares, wants, strict=True) if given < want - 1e-6]
    for given_, want in zip(shares, wants, strict=True):
        if lacking:
            assert given_ <= max(want, floor) + 1e-6
            assert given_ <= min(lacking) + 1e-6 or given_ <= floor + 1e-6


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 20)), min_size=1, max_size=6),
    st.integers(0, 1 << 32),
)
def test_slots_wait_for_what_is_held_beyond_them(limit: int, ends: list[tuple[float, int]], first: int) -> None:
    wants, held = [want for want, _ in ends], [has for _, has in ends]
    free = [slots(limit, wants, [0] * len(ends), place, first) for place in range(len(ends))]
    assert sum(free) == limit
    given_ = [slots(limit, wants, held, place, first) for place in range(len(ends))]
    assert min(given_) >= 0
    assert sum(max(pair) for pair in zip(held, given_, strict=True)) <= max(limit, sum(held))


def test_the_first_of_equals_has_what_remains_and_those_behind_it_follow() -> None:
    for first in range(6):
        given_ = [slots(2, [1.0, 1.0, 1.0], [0, 0, 0], place, first) for place in range(3)]
        assert given_[(first + 2) % 3] == 0
        assert sorted(given_) == [0, 1, 1]
    assert [slots(1, [1.0, 3.0], [0, 0], place, 0) for place in (0, 1)] == [1, 0], "both may have half"
    assert [slots(1, [0.0, 1.0], [0, 0], place, 0) for place in (0, 1)] == [0, 1], "a larger part comes before it"


def test_the_odd_slots_of_many_tenants_are_spread_over_the_processes() -> None:
    """Of 300 tenants with four slots, each asked for alike in three processes, each process has the odd one of some."""
    tenants = [Tenant(f"tenant-{number}", max_concurrency=4) for number in range(300)]
    told = {name: {tenant.name: Demand(5.0, 0.0, 0) for tenant in tenants} for name in "abc"}
    odd = []
    for name in told:
        limits = Limits(name)
        limits.follow(told, 0.0)
        for tenant in tenants:
            limits.enter(tenant, 1, 0.0)
        odd.append({tenant.name for tenant in tenants if not limits.broken(tenant, 0.0)})
    assert set.union(*odd) == {tenant.name for tenant in tenants}
    assert sum(map(len, odd)) == len(tenants), "no odd slot is in two processes"
    assert all(60 < len(here) < 140 for here in odd)


@given(st.integers(1, 50), st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_what_all_ask_for_together_is_given_when_there_is_enough(limit: int, wants: list[int]) -> None:
    assume(sum(wants) <= limit)
    for place, want in enumerate(wants):
        assert slots(limit, [float(each) for each in wants], wants, place) >= want


@given(LIMIT, st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), min_size=1, max_size=5), st.data())
def test_shares_by_different_views_are_off_by_no_more_than_the_views(
    limit: float, ends: list[tuple[float, float]], data: st.DataObject
) -> None:
    count = len(ends)
    views = [[data.draw(st.sampled_from(pair)) for pair in ends] for _ in range(count)]
    total = sum(share(limit, views[place], place) for place in range(count))
    columns = [[min(view[place], limit) for view in views] for place in range(count)]
    assert total <= limit + sum(max(column) - min(column) for column in columns) + 1e-6


STEP_S = 0.05
PROCESSES = 3
TENANT = Tenant("t", tokens_per_min=6000)
RATE = TENANT.tokens_per_min / 60
STEPS = st.lists(
    st.tuples(
        st.tuples(*[st.integers(0, 4)] * PROCESSES),  # requests that come at each process
        st.integers(1, 80),  # tokens of each
        st.floats(0, 1),  # what part of it is used
        st.integers(0, 20),  # how long it runs, in steps
    ),
    min_size=20,
    max_size=120,
)


class Crowd:
    """Processes that hear of each other's announcements late."""

    def __init__(self, lags: tuple[int, ...]) -> None:
        self.limits = [Limits(str(place)) for place in range(PROCESSES)]
        self.lags = lags
        self.log: list[tuple[int, dict[str, dict[str, Demand]]]] = [
            (-1000, {str(place): {} for place in range(PROCESSES)})
        ]

    def exchange(self, step: int, now: float) -> None:
        """Announces each quarter of a second; each process hears what was said `lag` steps ago."""
        if step % 5 == 0:
            self.log.append((step, {str(p): dict(limits.tell(now)) for p, limits in enumerate(self.limits)}))
        for limits, lag in zip(self.limits, self.lags, strict=True):
            limits.follow(next(said for at, said in reversed(self.log) if at <= step - lag), now)

    def above(self, now: float) -> float:
        """What the shares are more than the limit, in tokens per second."""
        for limits in self.limits:
            limits.broken(TENANT, now)  # from here on it is known there
        return max(sum(limits.stats("t", now).tokens_per_min_allowed for limits in self.limits) / 60 - RATE, 0.0)


@settings(deadline=None)  # hundreds of steps of three processes
@given(STEPS, st.tuples(*[st.integers(0, 8)] * PROCESSES))
@example([((4, 4, 4), 80, 1.0, 0)] * 120, (0, 4, 8))
@example([((4, 0, 0), 80, 1.0, 3)] * 40 + [((0, 4, 0), 80, 1.0, 3)] * 40 + [((0, 0, 4), 80, 1.0, 3)] * 40, (8, 0, 3))
def test_what_gets_through_is_within_the_bound(
    steps: list[tuple[tuple[int, ...], int, float, int]], lags: tuple[int, ...]
) -> None:
    crowd, passed, excess, largest = Crowd(lags), 0, 0.0, 0
    running: list[tuple[int, Limits, Ticket, int]] = []
    for step, (arrivals, tokens, part, length) in enumerate(steps):
        now = step * STEP_S
        crowd.exchange(step, now)
        for limits, count in zip(crowd.limits, arrivals, strict=True):
            for _ in range(count):
                try:
                    limits.knock(TENANT, now)
                    ticket = limits.enter(TENANT, tokens, now)
                except QuotaExceeded:
                    continue
                largest = max(largest, tokens)
                running.append((step + length, limits, ticket, int(tokens * part)))
        for entry in [entry for entry in running if entry[0] <= step]:
            running.remove(entry)
            _, limits, ticket, used = entry
            limits.settle(ticket, used, now)
            passed += used
        reserved = sum(ticket.reserved for _, _, ticket, _ in running)
        bound = RATE * now + RATE * BURST_S + PROCESSES * largest + excess
        assert passed + reserved <= bound + 1e-3
        excess += crowd.above(now) * STEP_S


def test_without_delay_nothing_is_above_the_limit() -> None:
    crowd = Crowd((0, 0, 0))
    for step in range(200):
        now = step * STEP_S
        crowd.exchange(step, now)
        for place, limits in enumerate(crowd.limits):
            for _ in range((step // 40 + place) % 3):
                try:
                    limits.knock(TENANT, now)
                    limits.settle(limits.enter(TENANT, 30, now), 30, now)
                except Exception:
                    continue
        assert crowd.above(now) < 1e-6


@settings(deadline=None)  # hundreds of steps of three processes
@given(
    st.integers(PROCESSES, 12),
    st.tuples(*[st.integers(0, 4)] * PROCESSES),
    st.lists(st.tuples(st.tuples(*[st.integers(0, 3)] * PROCESSES), st.integers(0, 40)), min_size=20, max_size=150),
)
@example(4, (0, 4, 2), [((3, 0, 0), 40)] * 40 + [((3, 3, 3), 40)] * 110)
@example(3, (4, 0, 4), [((1, 0, 0), 30)] * 30 + [((0, 1, 0), 30)] * 30 + [((0, 0, 1), 30)] * 30)
def test_requests_in_flight_stay_within_the_limit(
    most: int, lags: tuple[int, ...], steps: list[tuple[tuple[int, ...], int]]
) -> None:
    tenant, crowd = Tenant("t", max_concurrency=most), Crowd(lags)
    running: list[tuple[int, Limits, Ticket]] = []
    for step, (arrivals, length) in enumerate(steps):
        now = step * STEP_S
        for entry in [entry for entry in running if entry[0] <= step]:
            running.remove(entry)
            entry[1].settle(entry[2], 0, now)
        crowd.exchange(step, now)
        for limits, count in zip(crowd.limits, arrivals, strict=True):
            for _ in range(count):
                try:
                    limits.knock(tenant, now)
                    running.append((step + length, limits, limits.enter(tenant, 1, now)))
                except QuotaExceeded:
                    continue
        assert len(running) <= most
