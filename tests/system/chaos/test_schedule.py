"""The schedule: the same for a seed, complete, and never more than the mesh has to bear."""

from itertools import combinations

import pytest

from tests.system.chaos.schedule import (
    CLIENT,
    ETCD,
    KINDS,
    MOST_AT_ONCE,
    SERVICES,
    SHORT_EVERY_S,
    SHORT_MINUTES,
    SHORT_SEED,
    Fault,
    apart,
    draw,
    service_of,
)  # fmt: skip

CAST = {"admission": 2, "router": 2, "batcher": 2, "kvcache": 2, "executor": 3, "placement": 2}
NAMES = {CLIENT, ETCD, *(f"{service}-{number}" for service, count in CAST.items() for number in range(1, count + 1))}


def long(seed: int, *, wires: bool = True) -> list[list[Fault]]:
    return [list(faults) for faults in draw(seed, 20.0, CAST, wires=wires)]


def test_a_seed_has_one_schedule() -> None:
    assert long(7) == long(7)
    assert long(7) != long(8)


def test_a_long_schedule_has_every_kind_and_every_target() -> None:
    faults = [fault for faults in long(3) for fault in faults]
    assert len(faults) >= 400
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {target for fault in faults for target in fault.targets} == NAMES
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))


def test_the_short_run_is_short_and_has_something_of_everything() -> None:
    """Another seed may be needed when the kinds change."""
    short = draw(SHORT_SEED, SHORT_MINUTES, CAST, every_s=SHORT_EVERY_S)
    assert max(fault.ends_s for faults in short for fault in faults) < 15.0
    faults = [fault for faults in short for fault in faults]
    kinds = [KINDS[fault.kind] for fault in faults]
    assert len(faults) >= 12
    assert {kind.shape for kind in kinds} >= {"process", "pair", "etcd", "clients"}
    assert any(kind.wires for kind in kinds)
    ended = {service_of(name) for fault in faults if KINDS[fault.kind].ends for name in fault.targets}
    assert ended == set(SERVICES)


def test_sizes_are_within_their_bounds() -> None:
    for fault in [fault for faults in long(4) for fault in faults]:
        kind = KINDS[fault.kind]
        assert kind.lasts_s[0] <= fault.lasts_s <= kind.lasts_s[1], fault
        assert kind.amount[0] <= abs(fault.amount) <= kind.amount[1], fault
    jumps = [fault.amount for faults in long(4) for fault in faults if fault.kind == "the clock jumps"]
    assert min(jumps) < 0 < max(jumps)


def test_faults_of_one_service_do_not_meet() -> None:
    for faults in long(5):
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


def test_every_second_round_spares_the_admissions() -> None:
    ended = [
        number % 2
        for number, faults in enumerate(long(10))
        for fault in faults
        if KINDS[fault.kind].ends and any(target.startswith("admission") for target in fault.targets)
    ]
    assert set(ended) == {0}


def test_all_of_a_service_is_what_it_says() -> None:
    for fault in [fault for faults in long(9) for fault in faults if fault.kind == "kill all of a service"]:
        [service] = {target.rpartition("-")[0] for target in fault.targets}
        assert service in SERVICES
        assert len(fault.targets) == CAST[service]
