"""Virtual time: order, periods, and what cannot be planned."""

import pytest

from services.simulator.loop import Loop


def test_events_happen_in_order_and_move_the_clock() -> None:
    loop, seen = Loop(), list[tuple[str, float]]()
    for name, at in (("late", 2.0), ("early", 1.0), ("as early", 1.0)):
        loop.at(at, lambda name=name: seen.append((name, loop.monotonic())))  # type: ignore[misc]
    while loop.step():
        pass
    assert seen == [("early", 1.0), ("as early", 1.0), ("late", 2.0)]
    assert loop.now() == loop.monotonic() == 2.0


def test_what_an_event_plans_for_now_comes_behind_what_was_planned_for_now() -> None:
    loop, seen = Loop(), list[str]()
    loop.at(1.0, lambda: loop.at(1.0, lambda: seen.append("planned last")))
    loop.at(1.0, lambda: seen.append("planned first"))
    while loop.step():
        pass
    assert seen == ["planned first", "planned last"]


def test_without_delay_an_event_happens_at_once() -> None:
    loop, seen = Loop(), list[float]()
    loop.after(0.0, lambda: seen.append(loop.time))
    assert seen == [0.0]
    loop.after(0.5, lambda: seen.append(loop.time))
    assert seen == [0.0]
    assert loop.step()
    assert seen == [0.0, 0.5]


def test_periods_go_on() -> None:
    loop, seen = Loop(), list[float]()
    loop.every(0.25, lambda: seen.append(loop.time))
    for _ in range(4):
        assert loop.step()
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_nothing_is_planned_for_the_past() -> None:
    loop = Loop()
    loop.at(3.0, lambda: None)
    loop.step()
    with pytest.raises(ValueError, match="nothing can be planned for 2"):
        loop.at(2.0, lambda: None)
