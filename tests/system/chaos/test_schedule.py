"""The schedule: the same for a seed, complete, and never more than the mesh has to bear."""

from itertools import combinations

import pytest

from services.console.mesh.plan import DOORS
from tests.system.chaos.schedule import (
    APART,
    CASTS,
    CLIENT,
    ETCD,
    KINDS,
    MOST_AT_ONCE,
    SHORT_EVERY_S,
    SHORT_MINUTES,
    Cast,
    Fault,
    apart,
    draw,
    service_of,
)  # fmt: skip

casts = pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)


def long(seed: int, cast: Cast = APART, *, wires: bool = True) -> list[list[Fault]]:
    return [list(faults) for faults in draw(seed, 20.0, cast, wires=wires)]


def test_a_seed_has_one_schedule() -> None:
    assert long(7) == long(7)
    assert long(7) != long(8)


@casts
def test_a_long_schedule_has_every_kind_and_every_target(cast: Cast) -> None:
    faults = [fault for faults in long(3, cast) for fault in faults]
    names = {f"{service}-{number}" for service, count in cast.counts.items() for number in range(1, count + 1)}
    assert len(faults) >= 400
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {target for fault in faults for target in fault.targets} == {CLIENT, ETCD, *names}
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))


@casts
def test_the_short_run_is_short_and_has_something_of_everything(cast: Cast) -> None:
    """Another seed may be needed when the kinds change."""
    short = draw(cast.short_seed, SHORT_MINUTES, cast, every_s=SHORT_EVERY_S)
    assert max(fault.ends_s for faults in short for fault in faults) < 15.0
    faults = [fault for faults in short for fault in faults]
    kinds = [KINDS[fault.kind] for fault in faults]
    assert len(faults) >= 12
    assert {kind.shape for kind in kinds} >= {"process", "pair", "etcd", "clients"}
    assert any(kind.wires for kind in kinds)
    ended = {service_of(name) for fault in faults if KINDS[fault.kind].ends for name in fault.targets}
    assert ended == set(cast.counts)


def test_sizes_are_within_their_bounds() -> None:
    for fault in [fault for faults in long(4) for fault in faults]:
        kind = KINDS[fault.kind]
        assert kind.lasts_s[0] <= fault.lasts_s <= kind.lasts_s[1], fault
        assert kind.amount[0] <= abs(fault.amount) <= kind.amount[1], fault
    jumps = [fault.amount for faults in long(4) for fault in faults if fault.kind == "the clock jumps"]
    assert min(jumps) < 0 < max(jumps)


@casts
def test_faults_of_one_service_do_not_meet(cast: Cast) -> None:
    for faults in long(5, cast):
        assert all(apart(one, other) for one, other in combinations(faults, 2))
        for fault in faults:
            assert sum(other.at_s <= fault.at_s < other.ends_s for other in faults) <= MOST_AT_ONCE


def test_without_wires_nothing_is_cut() -> None:
    faults = [fault for faults in long(6, wires=False) for fault in faults]
    assert faults
    assert not any(KINDS[fault.kind].wires for fault in faults)


@pytest.mark.parametrize(
    ("targets", "at_s", "free"),
    [
        (("router-2",), 3.0, False),  # its twin is down
        (("router-2",), 5.9, False),  # its twin is on its way back
        (("router-2",), 6.1, True),
        (("batcher-1",), 0.5, True),
        (("batcher-1", "router-2"), 0.5, False),
    ],
)
def test_a_service_keeps_one_process(targets: tuple[str, ...], at_s: float, free: bool) -> None:
    first = Fault(1, 0.0, "kill", ("router-1",), 1.0)
    assert apart(Fault(2, at_s, "cut", targets, 1.0), first) is free


@casts
def test_every_second_round_spares_the_admissions(cast: Cast) -> None:
    ended = [
        number % 2
        for number, faults in enumerate(long(10, cast))
        for fault in faults
        if KINDS[fault.kind].ends and any(service_of(target) in DOORS for target in fault.targets)
    ]
    assert set(ended) == {0}


@casts
def test_all_of_a_service_is_what_it_says(cast: Cast) -> None:
    for fault in [fault for faults in long(9, cast) for fault in faults if fault.kind == "kill all of a service"]:
        [service] = set(map(service_of, fault.targets))
        assert len(set(fault.targets)) == cast.counts[service]


@casts
def test_a_pair_is_two(cast: Cast) -> None:
    pairs = [fault.targets for faults in long(11, cast) for fault in faults if KINDS[fault.kind].shape == "pair"]
    assert {(service_of(one), service_of(other)) for one, other in pairs} == set(cast.pairs)
    assert all(one != other for one, other in pairs)
