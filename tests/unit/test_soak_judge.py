"""The soak's verdict reports made-up leaks, and does not cry over what a healthy mesh does."""

import math

import numpy as np
import pytest

from tests.bench.soak import judge
from tests.bench.soak.judge import Tolerance

HOUR = 3600.0
AT_S = [60.0 * minute for minute in range(121)]
MEMORY = Tolerance(0.05, 4.0)


def series(per_hour: float = 0.0, noise: float = 0.5, warm: float = 10.0, seed: int = 1) -> list[float | None]:
    """Two hours of a process of 80 MB: it warms up, breathes, and leaks so much per hour."""
    chance = np.random.default_rng(seed)
    return [
        80 + warm * (1 - math.exp(-at / 400)) + per_hour * at / HOUR + chance.normal(0, noise) + 3 * (number % 17 == 0)
        for number, at in enumerate(AT_S)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_process_is_flat(seed: int) -> None:
    verdict = judge.flat("router-1", AT_S, series(seed=seed), MEMORY, "MB")
    assert verdict.holds, verdict


@pytest.mark.parametrize("per_hour", [6.0, 20.0, 300.0])
def test_a_leak_is_reported_with_its_size(per_hour: float) -> None:
    verdict = judge.flat("router-1", AT_S, series(per_hour), MEMORY, "MB")
    rise = judge.rise(AT_S, series(per_hour))
    assert not verdict.holds
    assert rise is not None
    assert rise.per_hour == pytest.approx(per_hour, rel=0.1)
    assert f"{rise.per_hour:+,.2g} per hour" in verdict.said


def test_what_a_leak_of_twenty_bytes_per_request_comes_to() -> None:
    """At 100 requests/s: below what an ordinary memory graph shows, and reported."""
    assert not judge.flat("admission-1", AT_S, series(per_hour=100 * HOUR * 20 / 1e6), MEMORY).holds


def test_warm_up_is_not_judged() -> None:
    values: list[float | None] = [20.0 * min(at / (0.24 * AT_S[-1]), 1.0) for at in AT_S]
    assert judge.flat("caches fill", AT_S, values, Tolerance(0.0, 0.1)).holds
    later: list[float | None] = [20.0 * at / AT_S[-1] for at in AT_S]
    assert not judge.flat("caches fill for ever", AT_S, later, Tolerance(0.0, 0.1)).holds


def test_outliers_and_missing_values_do_not_decide() -> None:
    values = series()
    values[100:110] = [400.0] * 10
    values[50:60] = [None] * 5 + [math.nan] * 5
    assert judge.flat("router-1", AT_S, values, MEMORY).holds


def test_a_rise_that_chance_explains_is_none() -> None:
    chance = np.random.default_rng(3)
    values: list[float | None] = [*chance.normal(30, 20, 20)]
    assert judge.flat("first token", AT_S[:20], values, Tolerance(0.0, 0.001), "ms").holds


def test_a_series_that_is_too_short_is_not_taken_for_flat() -> None:
    verdict = judge.flat("router-1", AT_S[:9], series()[:9], MEMORY)
    assert not verdict.holds
    assert "too few" in verdict.said
    assert not judge.flat("router-1", [], [], MEMORY).holds


def test_a_leak_of_files_is_reported_though_it_is_slow() -> None:
    files: list[float | None] = [40.0 + int(at / HOUR * 10) for at in AT_S]
    assert not judge.flat("admission-1: files", AT_S, files, Tolerance(0.1, 6)).holds
    assert not judge.none_left("admission-1: files", 40, 60, 12).holds
    assert judge.none_left("admission-1: files", 40, 50, 12).holds


ALLOWED = {"chat": frozenset({"OK"}), "wrong": frozenset({"REQUEST_INVALID"})}
DOCUMENTED = frozenset({"OK", "OVERLOADED", "REQUEST_INVALID"})


def verdicts(chat: dict[str, int], wrong: int = 10) -> list[bool]:
    outcomes = {"chat": chat, "wrong": {"REQUEST_INVALID": wrong}}
    return [each.holds for each in judge.ended_well(outcomes, ALLOWED, DOCUMENTED)]


def test_every_kind_of_request_has_its_own_endings() -> None:
    assert verdicts({"OK": 10_000}) == [True, True]
    assert verdicts({"OK": 10_000, "OVERLOADED": 5}) == [True, True]
    assert verdicts({"OK": 10_000, "OVERLOADED": 50}) == [True, False]
    assert verdicts({"OK": 10_000, "REQUEST_INVALID": 50}) == [True, False]


def test_one_undocumented_error_is_one_too_many() -> None:
    assert verdicts({"OK": 1_000_000, "code INTERNAL": 1}) == [False, True]


def test_a_hole_in_what_was_seen_is_told() -> None:
    assert judge.complete("windows", AT_S, 180).holds
    assert not judge.complete("windows", [*AT_S[:50], *AT_S[60:]], 180).holds
