"""What placement remembers between plans: demand, absences, failures."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from libs.catalogue import ModelSpec, Scaling
from services.placement.demand import Asked, Demand
from services.placement.failures import EXPIRY_S, Failures
from services.placement.presence import Presence
from services.placement.values import ExecutorView, Failure, Load, Resident
from services.placement.wish import wish

IDLE = {"m": 60.0}


def test_demand_adds_up_over_batchers() -> None:
    asked = {"b1": {"m": Asked(5, 2, 1, 0.5, 90.0)}, "b2": {"m": Asked(7, 1, 3, 2.5, 95.0), "x": Asked(1, 1)}}
    loads = Demand(80.0).loads(asked, IDLE, 100.0)
    assert loads.keys() == {"m"}, "what is not in the catalogue is not remembered"
    load = loads["m"]
    assert (load.running, load.waiting, load.oldest_waiting_s, load.works, load.peak) == (3, 4, 2.5, 7, 7)
    assert load.last_request == 100.0, "works run now"


def test_a_batcher_that_vanishes_takes_its_queue_along_but_not_the_history() -> None:
    demand = Demand(0.0)
    demand.loads({"b1": {"m": Asked(5, 0, 4, 1.0, 99.0)}}, IDLE, 100.0)
    load = demand.loads({}, IDLE, 110.0)["m"]
    assert (load.works, load.oldest_waiting_s, load.last_request, load.peak) == (0, 0.0, 100.0, 4)
    assert demand.loads({}, IDLE, 161.0)["m"].peak == 0, "calm for as long as the model says"


def test_a_new_leader_takes_models_for_used_when_it_came_to_power() -> None:
    assert Demand(50.0).loads({}, IDLE, 60.0)["m"].last_request == 50.0


def test_a_rate_survives_a_batcher_that_starts_anew() -> None:
    demand = Demand(0.0)
    for second in range(1, 121):
        count = 2 * second if second < 100 else 2 * (second - 100)  # the counter begins again
        load = demand.loads({"b1": {"m": Asked(count)}}, IDLE, float(second))["m"]
    assert 1.8 < load.rate < 2.1


def test_a_clock_of_a_batcher_that_is_ahead_does_not_count() -> None:
    load = Demand(0.0).loads({"b1": {"m": Asked(1, last_request=10**9)}}, IDLE, 100.0)["m"]
    assert load.last_request == 100.0


@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 9)), min_size=1, max_size=40))
def test_the_peak_is_that_of_the_window(steps: list[tuple[float, int]]) -> None:
    demand, now, seen = Demand(0.0), 0.0, list[tuple[float, int]]()
    for pause_s, works in steps:
        now += pause_s
        seen.append((now, works))
        load = demand.loads({"b": {"m": Asked(0, works)}}, IDLE, now)["m"]
        assert load.peak == max(count for at, count in seen if at >= now - 60.0)


def test_copies_that_are_needed_and_copies_that_may_stay() -> None:
    spec = ModelSpec("m", "x:", 64, 4, 16, 8, 64, scaling=Scaling(1, 4, 0, 60.0))
    now = 1000.0

    def counts(**load: float) -> tuple[int, int]:
        made = wish(spec, Load(**load), now)  # type: ignore[arg-type]
        return made.need, made.keep

    assert counts() == (1, 1)
    assert counts(running=8, peak=8) == (1, 1), "0 works per copy means its slots"
    assert counts(running=8, waiting=1, peak=20) == (2, 3)
    assert counts(waiting=999, peak=999) == (4, 4)
    spec = replace(spec, scaling=Scaling(0, 4, 2, 60.0))
    assert counts(last_request=now - 59) == (0, 1)
    assert counts(last_request=now - 61) == (0, 0)
    spec = replace(spec, scaling=None, replicas=3)
    assert counts(running=99) == (3, 3)


def test_an_executor_that_holds_copies_is_missed_for_a_while() -> None:
    presence, view = Presence(30.0), ExecutorView("x", 5)
    assert presence.views({"a": view, "b": view}, {"a"}, 0.0) == {"a": view, "b": view}
    assert presence.views({}, {"a"}, 29.0) == {"a": replace(view, present=False)}
    assert presence.views({}, {"a"}, 31.0) == {}
    assert presence.views({"a": view}, {"a"}, 32.0) == {"a": view}
    assert presence.views({}, {"a"}, 60.0) == {"a": replace(view, present=False)}


def test_an_executor_that_a_new_leader_has_never_seen_may_be_anything() -> None:
    presence = Presence(30.0)
    unknown = presence.views({}, {"a"}, 100.0)["a"]
    assert (unknown.present, unknown.engine, unknown.labels) == (False, "", None)
    assert presence.views({}, {"a"}, 129.0)
    assert not presence.views({}, {"a"}, 131.0)


def failing(since: float, attempts: int = 1) -> dict[str, ExecutorView]:
    return {"a": ExecutorView("x", 5, residents={"m@1": Resident("failed", since, 0, "why", attempts)})}


def test_failures_are_counted_and_forgotten() -> None:
    failures, key = Failures({}), ("a", "m@1")
    assert failures.observe(failing(100.0), {"a": 1.0}, 100.0) == {key: Failure(100.0, 1, "why")}
    assert failures.observe(failing(100.0), {"a": 1.0}, 101.0) == {}, "the same one"
    assert failures.observe(failing(130.0, 2), {"a": 1.0}, 130.0) == {key: Failure(130.0, 2, "why")}
    assert failures.observe({}, {"a": 1.0}, 150.0) == {}
    assert failures.observe(failing(200.0, 1), {"a": 1.0}, 200.0) == {key: Failure(200.0, 3, "why")}, "placed again"
    assert failures.observe({}, {"a": 1.0}, 200.0 + EXPIRY_S + 1) == {key: None}
    assert not failures.known


def test_an_executor_that_started_anew_has_a_clean_slate() -> None:
    failures = Failures({("a", "m@1"): Failure(100.0, 3, "no memory"), ("b", "m@1"): Failure(100.0, 1, "")})
    assert failures.observe({}, {"a": 120.0, "b": 1.0}, 121.0) == {("a", "m@1"): None}
    assert failures.known.keys() == {("b", "m@1")}
