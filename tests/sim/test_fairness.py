"""Tenants that send too much, in virtual time: what the others notice, and who gets how much."""

from collections.abc import Sequence
from dataclasses import replace

from services.simulator.values import OK
from tests.sim.contest import CAPACITY_PER_S, Tenant, evenness, play, view

SECONDS = 40.0
SEEDS = range(3)
QUIET = Tenant("quiet", 0.1 * CAPACITY_PER_S)


def seen_beside(noisy: Tenant | None) -> tuple[float, int]:
    """The quiet tenant's p99 of the first token in seconds, and how many of its requests were refused."""
    tenants: Sequence[Tenant] = [QUIET] if noisy is None else [QUIET, noisy]
    found = view([play(1, tenants, SECONDS, seed) for seed in SEEDS], "quiet", SECONDS)
    assert found.preemptions == 0
    assert found.first_token.p99 is not None
    return found.first_token.p99, found.refused


def test_a_full_mesh_feels_the_same_however_much_more_a_tenant_sends() -> None:
    full = Tenant("noisy", CAPACITY_PER_S)
    (before, refused), (after, also_refused) = seen_beside(full), seen_beside(replace(full, per_s=100 * full.per_s))
    assert after <= 1.1 * before
    assert refused == also_refused == 0, "the quiet tenant is below its share"


def test_beside_a_flood_a_quiet_tenant_waits_for_steps_and_not_in_the_queue() -> None:
    alone, _ = seen_beside(None)
    flooded, refused = seen_beside(Tenant("noisy", 50 * QUIET.per_s))
    assert flooded - alone <= 0.25, "a few full steps"
    assert refused == 0


def test_who_sends_more_than_its_share_gets_its_share_whatever_it_sends() -> None:
    tenants = [
        Tenant("short", 80.0, (100, 400), (20, 100)),
        Tenant("talk", 40.0, weight=1.0),
        Tenant("documents", 16.0, (2000, 8000), (50, 200), weight=2.0),
        Tenant("essays", 40.0, (100, 300), (300, 500), weight=4.0),
    ]
    result = play(1, tenants, 60.0, seed=1)
    assert evenness(result, 60.0, 1).whole >= 0.98
    assert any(each.outcome != OK for each in result.served), "too much was asked for"
    assert result.engine_preemptions == 0
