"""Five times too much, on real processes: the short form of tests/bench/overload.py, which also measures what cannot be
held to on cores that others use, as how soon a refusal comes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.overload import SHARES, Result, find_peak, flood, write_policy
from tests.system.mesh import Mesh

EXECUTORS = 2
FACTOR = 5.0
IN_FLIGHT = 112
"""Fills both executors, and what waits beside it is in time."""
PEAK_S, FLOOD_S = 10.0, 14.0


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """What became of it. One flood for all tests: it is what takes the time."""
    folder: Path = tmp_path_factory.mktemp("policy")
    write_policy(folder, dict.fromkeys(SHARES, 1.0))
    with Mesh(executors=EXECUTORS, envoy=False, extra_policy=folder, env={"HEADRACE_TRACE_RATIO": "0"}) as mesh:
        peak = find_peak(mesh, PEAK_S, (IN_FLIGHT,))
        yield flood(mesh, EXECUTORS, peak, FACTOR, FLOOD_S, quiet_s=0.0)


def test_who_is_refused_is_told_so_and_when_to_come_back(flooded: Result) -> None:
    assert flooded.refused > 0.5 * flooded.offered_per_s * FLOOD_S, "most of it is too much"
    assert flooded.refused_code == flooded.refused, "RESOURCE_EXHAUSTED"
    assert flooded.refused_with_retry == flooded.refused


def test_a_tenant_below_its_share_is_never_refused(flooded: Result) -> None:
    brook = flooded.parties["brook"]
    assert brook.answered > 0
    assert brook.refused == 0


def test_the_engines_go_on_with_what_they_can_do(flooded: Result) -> None:
    assert flooded.share_of_peak >= 0.8
    assert flooded.preemptions == 0


def test_who_was_accepted_has_its_turn_in_time(flooded: Result) -> None:
    assert flooded.overdue_share <= 0.05
    assert flooded.late_share <= 0.2, "where others use the cores, a token takes longer from the engine to its client"
