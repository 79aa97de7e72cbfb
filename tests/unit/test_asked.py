"""What is asked of each model, as placement is told."""

import pytest

from libs.lane.work import Tier
from services.batcher import asked as asked_module
from services.batcher.asked import Asked, Demand
from services.batcher.pool import Pool
from services.batcher.queue import Entry
from services.batcher.rules import TARGET_S
from services.batcher.saturation import Saturation
from services.batcher.scheduling import SchedulingRules


def pool(name: str, held: int, *waiting: tuple[Tier, float]) -> Pool:
    """A pool with works that wait, by tier and arrival, among those that it holds."""
    made = Pool(name, SchedulingRules())
    made.held = held
    for key, (tier, at) in enumerate(waiting):
        made.queue.push(Entry(key, tier, 4, at))
    return made


def test_the_versions_of_a_model_are_one_demand() -> None:
    asked = Asked()
    for at, name in ((100.0, "m@1"), (101.0, "m@2"), (99.0, "n@1")):
        asked.arrived(name, at)
    asked.left_queue("m@1", 2.0)
    asked.left_queue("m@2", 0.5)
    pools = [
        pool("m@1", 5, (Tier.ASYNC, 40.0)), pool("m@2", 2, (Tier.INTERACTIVE, 43.0), (Tier.INTERACTIVE, 44.0)),
        pool("n@1", 1),
    ]  # fmt: skip
    calm = [Saturation(Tier.INTERACTIVE), Saturation(Tier.ASYNC)]
    waits = [Saturation(Tier.INTERACTIVE, waiting=2), Saturation(Tier.ASYNC, waiting=1)]
    assert asked.demands(pools, TARGET_S, 50.0) == [
        Demand(
            "m", 2, running=4, waiting=3, oldest_waiting_s=10.0, last_request=101.0, queued_s=2.5, saturations=waits
        ),
        Demand("n", 1, running=1, waiting=0, oldest_waiting_s=0.0, last_request=99.0, queued_s=0.0, saturations=calm),
    ]


def test_the_versions_of_a_model_saturate_together() -> None:
    asked = Asked()
    asked.arrived("m@1", 0.0)
    old, new = pool("m@1", 0), pool("m@2", 0)
    old.load.left(Entry(1, Tier.INTERACTIVE, 4, 49.0), 2.0, 50.0)
    new.load.left(Entry(1, Tier.INTERACTIVE, 4, 49.5), 2.0, 50.0)
    for _ in range(3):
        old.load.arrived("t", Tier.ASYNC, True, 50.0)
        new.load.arrived("t", Tier.ASYNC, False, 50.0)
    (demand,) = asked.demands([old, new], TARGET_S, 50.0)
    assert demand.saturations == [
        Saturation(Tier.INTERACTIVE, wait=0.5), Saturation(Tier.ASYNC, refused=3 / 7)
    ]  # fmt: skip


def test_what_nobody_asks_for_any_more_is_still_told() -> None:
    asked = Asked()
    asked.arrived("m@1", 100.0)
    (demand,) = asked.demands([], TARGET_S, 5000.0)
    assert (demand.requests, demand.running, demand.last_request) == (1, 0, 100.0), "placement counts from there"


def test_models_that_left_the_catalogue_are_forgotten() -> None:
    asked = Asked()
    asked.arrived("m@1", 1.0)
    asked.arrived("n@1", 1.0)
    asked.keep({"n": None})
    assert [demand.model for demand in asked.demands([], TARGET_S, 2.0)] == ["n"]


def test_the_counters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_module, "MOST_MODELS", 3)
    asked = Asked()
    for at, name in enumerate(["a@1", "b@1", "c@1", "a@1", "d@1"]):
        asked.arrived(name, float(at))
    assert [demand.model for demand in asked.demands([], TARGET_S, 9.0)] == ["a", "c", "d"], (
        "b was asked for longest ago"
    )
