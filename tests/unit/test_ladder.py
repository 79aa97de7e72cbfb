"""When a tier gives up what, and for how long."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.catalogue import ModelSpec
from libs.lane.work import Tier
from services.admission.ladder import MOST, NONE, Effects, Ladders, Saturated
from services.admission.policy import Policy, Rung, TierPolicy

RUNGS = (
    Rung("short", 0.5, clamp_output_tokens=100),
    Rung("shorter", 0.7, clamp_output_tokens=40),
    Rung("lean", 0.9, no_extras=True),
    Rung("closed", 4.0, reject=True),
)
RECOVER_S = 10.0
TIERS = {Tier.INTERACTIVE: TierPolicy(ladder=RUNGS, recover_s=RECOVER_S), Tier.ASYNC: TierPolicy()}
M = ModelSpec("m", "simulated:", 4096, 100, 16, 8, 512)
POLICY = Policy(tiers=TIERS, models={"m": M, "lora": replace(M, name="lora", base="m")})


class Rig:
    """Ladders that a test moves through time."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.ladders = Ladders(lambda: self.policy)
        self.now = 100.0

    def see(self, wait: float = 0.0, blocks: float = 0.0, refused: float = 0.0, *, after: float = 0.0) -> int:
        """The level once this is seen of interactive works."""
        self.now += after
        self.ladders.observe([Saturated("m", Tier.INTERACTIVE, wait, blocks, refused)], self.now)
        return self.effects().level

    def effects(self, *, protected: bool = False, model: str = "m", tier: Tier = Tier.INTERACTIVE) -> Effects:
        return self.ladders.effects(model, tier, protected, self.now)


# --- what is how bad -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "blocks", "refused", "expected"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (0.8, 0.2, 0.0, 0.8),
        (0.0, 1.0, 0.0, 0.0),
        (0.4, 1.0, 0.0, 0.8),
        (0.4, 0.6, 0.0, 0.6),
        (2.0, 1.0, 0.0, 2.0),
        (0.0, 0.0, 0.5, 1.0),
        (0.0, 0.0, 0.8, 4.0),
        (0.0, 0.0, 1.0, MOST),
        (nan, nan, nan, 0.0),
        (inf, 0.0, 0.0, MOST),
        (-1.0, -1.0, -1.0, 0.0),
    ],
)
def test_saturation(wait: float, blocks: float, refused: float, expected: float) -> None:
    assert Saturated("m", Tier.ASYNC, wait, blocks, refused).saturation == pytest.approx(expected)


def test_of_several_batchers_the_worst_counts() -> None:
    rig = Rig()
    several = [Saturated("m", Tier.INTERACTIVE, wait, blocks) for wait, blocks in ((0.1, 0.9), (0.4, 0.1), (0.3, 0.2))]
    rig.ladders.observe(several, 0.0)
    (state,) = rig.ladders.states()
    assert state.seen == Saturated("m", Tier.INTERACTIVE, 0.4, 0.9)
    assert state.rungs == ["short", "shorter"]


# --- up and down ---------------------------------------------------------------------------------


def test_it_rises_at_once_over_several_rungs() -> None:
    rig = Rig()
    assert rig.see(0.49) == 0
    assert rig.see(0.95, after=0.1) == 3
    effects = rig.effects()
    assert effects.rungs == ["short", "shorter", "lean"]
    assert (effects.clamp_output_tokens, effects.no_extras, effects.reject) == (40, True, False)
    assert "0.95" in effects.reason
    assert "short, shorter, lean" in effects.reason


def test_it_falls_a_rung_at_a_time() -> None:
    rig = Rig()
    rig.see(refused=0.9)
    levels = [rig.see(0.0, after=1.0) for _ in range(45)]
    assert levels == [4] * 10 + [3] * 10 + [2] * 10 + [1] * 10 + [0] * 5


def test_it_falls_no_further_than_to_the_rung_that_is_reached() -> None:
    rig = Rig()
    rig.see(1.0)
    assert [rig.see(0.75, after=RECOVER_S) for _ in range(4)] == [3, 2, 2, 2]
    assert rig.see(0.0, after=1.0) == 2, "it has been below for no time"
    assert rig.see(0.0, after=RECOVER_S) == 1


def test_one_moment_at_the_rung_begins_the_wait_anew() -> None:
    rig = Rig()
    rig.see(1.0)
    rig.see(0.1, after=1.0)
    assert rig.see(0.9, after=RECOVER_S - 1) == 3
    assert rig.see(0.1, after=RECOVER_S - 1) == 3
    assert rig.see(0.1, after=RECOVER_S) == 2


def test_what_is_not_mentioned_any_more_falls_too_and_is_forgotten() -> None:
    rig = Rig()
    rig.see(0.6)
    rig.ladders.observe([], rig.now + 1)
    assert rig.ladders.states()[0].level == 1
    rig.ladders.observe([], rig.now + 1 + RECOVER_S)
    rig.ladders.observe([], rig.now + 2 + RECOVER_S)
    assert not rig.ladders.states()


@given(st.lists(st.tuples(st.floats(0.01, 7.0), st.floats(0.0, 5.0)), max_size=100))
def test_it_never_flaps_and_never_stays(steps: list[tuple[float, float]]) -> None:
    rig, twin = Rig(), Rig()
    level, changed, below_since = 0, -inf, [-inf] * (len(RUNGS) + 1)
    for passed, wait in steps:
        new = rig.see(wait, after=passed)
        for number, rung in enumerate(RUNGS, 1):
            if wait >= rung.at:
                below_since[number] = inf
                assert new >= number, "up at once"
            elif below_since[number] == inf:
                below_since[number] = rig.now
        if new < level:
            assert new == level - 1, "down one by one"
            assert rig.now - changed >= RECOVER_S, "not before it was in force for a while"
            assert rig.now - below_since[level] >= RECOVER_S, "not while it was still needed"
        if new != level:
            level, changed = new, rig.now
        assert twin.see(wait, after=passed) == new
        assert twin.ladders.states() == rig.ladders.states()
    for _ in range(len(RUNGS) + 1):
        rig.see(0.0, after=RECOVER_S)
    assert rig.effects() == NONE


def test_behind_a_rung_that_defers_the_async_tier_counts() -> None:
    rungs = [
        Rung("short", 0.5, clamp_output_tokens=9),
        Rung("later", 1.0, defer=True),
        Rung("closed", 4.0, reject=True),
    ]
    rig = Rig(_with(rungs))

    def see(wait: float, later: float, after: float = 0.0) -> int:
        rig.now += after
        both = [Saturated("m", Tier.INTERACTIVE, wait), Saturated("m", Tier.ASYNC, later)]
        rig.ladders.observe(both, rig.now)
        return rig.effects().level

    assert see(0.6, later=9.0) == 1, "nothing is deferred yet"
    assert see(1.0, later=0.2) == 2
    assert see(0.0, later=4.0, after=1.0) == 3, "where they wait there is no room either"
    assert see(0.0, later=9.0, after=1.0) == 3
    assert see(0.0, later=9.0, after=RECOVER_S) == 2, "a flood of async work does not keep it up"
    assert see(0.0, later=9.0, after=1.0) == 2
    assert see(0.0, later=9.0, after=RECOVER_S) == 1
    assert see(2.0, later=9.0, after=1.0) == 3


# --- for whom ------------------------------------------------------------------------------------


def test_protected_tenants_are_spared_until_last() -> None:
    rig = Rig()
    rig.see(1.0)
    assert rig.effects(protected=True) == NONE
    rig.see(refused=0.9)
    assert rig.effects().reject
    spared = rig.effects(protected=True)
    assert spared.rungs == ["short", "shorter", "lean"]
    assert not spared.reject
    rig.see(refused=0.9, after=RECOVER_S - 0.1)
    assert not rig.effects(protected=True).reject
    rig.see(refused=0.9, after=0.1)
    assert rig.effects(protected=True).reject
    rig.see(0.0, after=0.1)
    rig.see(0.0, after=RECOVER_S)
    assert rig.effects(protected=True) == NONE, "the last rung is left"


def test_who_is_refused_is_told_when_the_rung_may_be_left() -> None:
    rig = Rig()
    rig.see(refused=0.9)
    assert rig.effects().retry_after_s == RECOVER_S
    rig.see(0.0, after=1.0)
    rig.see(0.0, after=6.0)
    assert rig.effects().retry_after_s == pytest.approx(4.0)


def test_the_tiers_stand_on_ladders_of_their_own() -> None:
    rig = Rig()
    rig.ladders.observe([Saturated("m", Tier.ASYNC, 9.0), Saturated("m", Tier.INTERACTIVE, 0.6)], 0.0)
    assert rig.effects().rungs == ["short"]
    assert rig.effects(tier=Tier.ASYNC) == NONE, "it has no rungs"
    assert [state.tier for state in rig.ladders.states()] == [Tier.INTERACTIVE]


def test_an_adapter_stands_on_the_ladder_of_its_base() -> None:
    rig = Rig()
    rig.see(1.0)
    assert rig.effects(model="lora") == rig.effects()


def test_what_the_policy_does_not_know_has_no_ladder() -> None:
    rig = Rig()
    rig.ladders.observe([Saturated("other", Tier.INTERACTIVE, 5.0)], 0.0)
    assert not rig.ladders.states()
    assert rig.effects(model="other") == NONE
    assert rig.effects(model="never heard of") == NONE
    rig.see(1.0)
    rig.policy = replace(POLICY, models={})
    rig.see(1.0)
    assert rig.effects() == NONE


def test_a_new_ladder_counts_at_once() -> None:
    rig = Rig()
    rig.see(refused=0.9)
    rig.policy = _with(RUNGS[:2])
    assert rig.see(0.55) == 2
    assert rig.effects().rungs == ["short", "shorter"]
    rig.policy = _with(())
    assert rig.see(9.0) == 0
    assert not rig.ladders.states()


@pytest.mark.parametrize("name", ["smaller_model", "tools_off", "no_extras", "defer", "reject"])
def test_each_step_has_its_effect(name: str) -> None:
    rig = Rig(_with([Rung("rung", 1.0, **{name: True})]))
    rig.see(1.0)
    effects = rig.effects()
    on = {each for each in ("smaller_model", "tools_off", "no_extras", "defer", "reject") if getattr(effects, each)}
    assert on == {name}


def _with(rungs: Sequence[Rung]) -> Policy:
    return replace(POLICY, tiers={Tier.INTERACTIVE: TierPolicy(ladder=rungs, recover_s=RECOVER_S)})
