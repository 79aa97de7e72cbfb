"""The model of the mesh's cost finds what it was made of, and the report says what is not flat."""

import random
from typing import Any

import pytest

from tests.bench.scale import report
from tests.bench.scale.model import NAMES, Load, fit
from tests.bench.scale.points import AXES, plan

US = dict(zip(NAMES, (9000.0, 150.0, 80.0, 4.0, 700.0), strict=True))


def cores(load: Load, **of: float) -> float:
    return sum((US | of)[name] * many for name, many in zip(NAMES, load.row, strict=True)) / 1e6


def loads() -> list[Load]:
    measured = [
        Load.of(executors, flight, step_s, answer)
        for executors in (1, 4, 16, 64)
        for flight, step_s, answer in ((4, 0.1, 128), (64, 0.1, 32), (64, 0.05, 512))
    ]
    return [*measured, *(Load(executors, 0, 0, 0) for executors in (1, 8, 64))]


def test_it_finds_the_cost_of_each_thing() -> None:
    cost = fit([(load, cores(load)) for load in loads()])
    assert {name: pytest.approx(us, rel=0.01) for name, us in US.items()} == dict(cost.us)
    beyond = Load.of(1024, 64, 0.02, 128)
    assert cost.cores(beyond) == pytest.approx(cores(beyond), rel=0.01)


def test_what_costs_nothing_is_not_paid_back_by_something_else() -> None:
    chance = random.Random(1)
    noisy = [(load, cores(load, executor=0.0) * chance.uniform(0.95, 1.05)) for load in loads()]
    cost = fit(noisy)
    assert min(cost.us.values()) >= 0
    assert cost.us["executor"] < 0.1 * US["executor"]
    assert cost.error < 0.1


def test_too_few_points_make_no_model() -> None:
    with pytest.raises(ValueError, match="4 points for 5 coefficients"):
        fit([(load, cores(load)) for load in loads()[:4]])


@pytest.mark.parametrize("backwards", [False, True])
def test_executors_only_come_or_only_go_while_a_mesh_is_up(backwards: bool) -> None:
    points = plan([*AXES], 4096, backwards)
    assert len(points) == sum(len(axis.points) for axis in AXES.values())
    assert [point.instances for point in points] == sorted(point.instances for point in points)
    first = [point.executors for point in points if point.instances == 1]
    assert first == sorted(first, reverse=backwards)


def results(cost_us: dict[int, float]) -> dict[str, Any]:
    runs = [
        {
            "axis": "flight", "value": flight, "executors": 4, "step_s": 0.1, "tokens_per_s": 10.0 * flight,
            "requests_per_s": 0.1 * flight, "offered": 10.0 * flight, "failed": 0, "foreign": foreign,
            "client_cores": 0.1, "memory_mb": dict.fromkeys(report.SERVING, 50.0),
            "cores": dict.fromkeys(report.SERVING, us * 10.0 * flight / 4e6 * (1 + 5 * foreign)),
        }
        for flight, us in cost_us.items() for foreign in (0.05, 0.06, 0.9)
    ]  # fmt: skip
    return {"machine": "made up", "runs": runs, "idle": []}


def test_the_report_tells_growth_from_flatness_and_leaves_disturbed_runs_out() -> None:
    flat = report.markdown(results({64: 20.0, 256: 21.0, 1024: 19.5, 4096: 20.5}))
    assert "requests in flight, 4 executors: flat within 10%." in flat
    assert "disturbed: others" not in flat
    assert "Left out: 4 runs" in flat
    grown = report.markdown(results({64: 20.0, 256: 20.0, 1024: 30.0, 4096: 10.0}))
    assert "requests in flight, 4 executors: grows (1,024: 1.50) and falls (4,096: 0.50)." in grown
