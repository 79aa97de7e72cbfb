"""What a drill decides: how much load, when to stop, whether a rung did what it says; and its report."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.console.drill import judge, page, plots
from services.console.drill.guard import Guard, Look
from services.console.drill.ramp import IDLE_S, Ramp
from services.console.drill.series import per_second
from services.console.drill.values import (
    VERSION,
    Bounds,
    Check,
    Kind,
    Order,
    Result,
    Rung,
    Sample,
    Sent,
    Verdict,
    decode,
    encode,
)

LADDER = [Rung("short", 0.7, "clamp_output_tokens", 50), Rung("lean", 0.8, "no_extras"), Rung("shut", 4.0, "reject")]
BOUNDS = Bounds(requests=100, seconds=60.0, per_s=50.0)
ORDER = Order("chat", "big", "small", "interactive", LADDER, recover_s=5.0, hold_s=3.0, growth=2.0, bounds=BOUNDS)


def probe(at: float, *rungs: str, tokens: int = 50, reason: str = "length", kind: Kind = Kind.PROBE) -> Sent:
    """One that was answered."""
    return Sent(kind, at, len(rungs), at + 0.1, at + 1.0, tokens=tokens, reason=reason, model="big", rungs=rungs)


def refused(at: float, told: int = 3, retry_s: float = 1.0, took: float = 0.01, error: str = "OVERLOADED") -> Sent:
    return Sent(Kind.LOAD, at, told, ended=at + took, error=error, retry_s=retry_s, told=told)


CLIMB = [
    Sample(float(at), level, saturation, per_s=2.0**at)
    for at, (level, saturation) in enumerate([(0, 0.1), (1, 0.75), (2, 0.9), (3, 5.0), (3, 5.0), (3, 0.0)])
]
FALL = [Sample(8.0 + 5.2 * step, level) for step, level in enumerate((3, 2, 1, 0))]
GOOD = [probe(0.5, tokens=82), probe(1.5, "short"), probe(2.5, "short", "lean"), refused(3.5)]


# --- how much ------------------------------------------------------------------------------------


def test_the_load_grows_until_a_rung_is_reached_and_is_held_there() -> None:
    ramp = Ramp(ORDER)
    for now in (1.0, 2.0, 3.0):
        ramp.follow(0, now)
    assert ramp.per_s == 8.0
    ramp.follow(1, 3.5)
    held = ramp.per_s
    ramp.follow(1, 6.0)
    assert ramp.per_s == held
    ramp.follow(1, 6.6)
    ramp.follow(1, 7.6)
    assert ramp.per_s == pytest.approx(held * 2**1.6, rel=0.01), "it goes on from when the hold was over"


def test_the_load_is_bounded_and_ends_when_it_leads_nowhere() -> None:
    ramp = Ramp(ORDER)
    ramp.follow(0, 100.0)
    assert ramp.per_s == 50.0
    assert ramp.over(100.0 + IDLE_S - 0.1) is None
    assert "50 requests a second" in (ramp.over(100.0 + IDLE_S) or "")


def test_the_load_ends_when_the_last_rung_was_held() -> None:
    ramp = Ramp(ORDER)
    ramp.follow(3, 1.0)
    assert ramp.over(3.9) is None
    assert ramp.over(4.0) == "every rung was reached"


# --- when to stop --------------------------------------------------------------------------------


@pytest.fixture
def guard() -> Guard:
    return Guard(BOUNDS, Look(frozenset({"router-1", "router-2"}), 7))


def test_nothing_stops_a_drill_that_does_what_it_is_for(guard: Guard) -> None:
    for at in range(99):
        guard.sent(at, at / 2)
        guard.ended(refused(at))
        guard.look(Look(frozenset({"router-1", "router-2", "router-3"}), 7))
    assert guard.why == ""


def test_its_bounds_stop_it(guard: Guard) -> None:
    guard.sent(100, 1.0)
    assert "100 requests were sent" in guard.why
    guard.sent(100, 70.0)
    assert "100 requests were sent" in guard.why, "the first reason stays"


def test_time_stops_it(guard: Guard) -> None:
    guard.sent(1, 60.0)
    assert "60 s" in guard.why


def test_errors_stop_it(guard: Guard) -> None:
    for at in range(60):
        guard.ended(probe(at))
    guard.ended(refused(61, error="STAGE_UNAVAILABLE"))
    assert "STAGE_UNAVAILABLE" in guard.why


@pytest.mark.parametrize(("error", "said"), [("INTERNAL", "a bug"), ("QUOTA_EXCEEDED", "own tenant")])
def test_some_errors_stop_it_at_once(guard: Guard, error: str, said: str) -> None:
    guard.ended(refused(1, error=error))
    assert said in guard.why


def test_a_process_that_goes_away_stops_it(guard: Guard) -> None:
    guard.look(Look(frozenset({"router-1"}), 7))
    assert "router-2" in guard.why


def test_refused_requests_of_others_stop_it(guard: Guard) -> None:
    guard.look(Look(frozenset({"router-1", "router-2"}), 8))
    assert "other tenants" in guard.why


# --- what it found -------------------------------------------------------------------------------


def verdicts(sent: Sequence[Sent], samples: Sequence[Sample] = CLIMB, order: Order = ORDER) -> list[str]:
    return [found.check.verdict.value for found in judge.rungs(order, samples, sent)]


def test_rungs_that_did_what_they_say() -> None:
    found = judge.rungs(ORDER, CLIMB, GOOD)
    assert [each.check.verdict for each in found] == [Verdict.GO] * 3
    assert [(each.reached_s, each.per_s) for each in found] == [(1.0, 2.0), (2.0, 4.0), (3.0, 8.0)]
    assert "50 tokens at most" in found[0].check.evidence
    assert "10 ms" in found[2].check.evidence


def test_a_rung_that_was_not_reached_is_unknown() -> None:
    found = judge.rungs(ORDER, CLIMB[:3], GOOD)
    assert found[2].reached_s is None
    assert found[2].check.verdict is Verdict.UNKNOWN
    assert "0.90" in found[2].check.evidence


def test_an_answer_longer_than_the_clamp_is_a_fault() -> None:
    assert verdicts([*GOOD, probe(2.0, "short", tokens=51)])[0] == "no-go"


def test_a_clamp_that_nothing_ran_into_was_not_seen() -> None:
    assert verdicts([probe(1.5, "short", tokens=9, reason="stop")])[0] == "unknown"


def test_a_small_model_has_to_answer() -> None:
    order = replace(ORDER, ladder=[Rung("small", 0.7, "smaller_model")])
    answer = probe(1.5, "small")
    assert verdicts([answer], order=order) == ["no-go"]
    answer.model = "small"
    assert verdicts([answer], order=order) == ["go"]
    assert verdicts([probe(1.5, "small")], order=replace(order, small="")) == ["go"], "told; more cannot be seen"


@pytest.mark.parametrize(
    ("refusal", "verdict"),
    [(refused(3.5), "go"), (refused(3.5, told=-1), "unknown"), (refused(3.5, retry_s=-1.0), "no-go"),
     (refused(3.5, took=2.0), "no-go")],
)  # fmt: skip
def test_a_refusal_comes_at_once_with_the_level_and_when_to_come_back(refusal: Sent, verdict: str) -> None:
    assert verdicts([*GOOD[:3], refusal])[2] == verdict


def whole(
    sent: Sequence[Sent] = GOOD, samples: Sequence[Sample] = (*CLIMB, *FALL), *, protected: bool = False
) -> dict[str, Verdict]:
    return {check.what.split()[0]: check.verdict for check in judge.ladder(ORDER, samples, sent, protected)}


def test_the_ladder_as_a_whole() -> None:
    sent = [*GOOD, probe(2.0, kind=Kind.SPARED, tokens=82)]
    sent[-1].level = 2
    assert set(whole(sent, protected=True).values()) == {Verdict.GO}
    assert whole()["protected"] is Verdict.UNKNOWN


def test_a_level_that_falls_too_fast_or_too_far_is_a_fault() -> None:
    assert whole(samples=[*CLIMB, Sample(9.0, 1), Sample(15.0, 0)])["levels"] is Verdict.NO_GO
    assert whole(samples=[*CLIMB, Sample(9.0, 2), Sample(10.0, 1), Sample(20.0, 0)])["levels"] is Verdict.NO_GO
    assert whole(samples=[*CLIMB, *FALL[:3]])["levels"] is Verdict.UNKNOWN


def test_a_protected_tenant_that_gave_something_up_is_a_fault() -> None:
    harmed = probe(2.0, "short", kind=Kind.SPARED)
    assert whole([*GOOD, harmed], protected=True)["protected"] is Verdict.NO_GO


def test_rungs_out_of_order_are_a_fault() -> None:
    assert whole([*GOOD, probe(2.0, "lean")])["callers"] is Verdict.NO_GO


def test_processes_that_fall_one_after_the_other_are_no_flapping() -> None:
    levels = [3, 3, 2, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 2, 1, 1]
    falling = [Sample(10.0 + 0.2 * at, level) for at, level in enumerate(levels)]
    assert whole(samples=[*CLIMB, *falling, Sample(30.0, 0)])["levels"] is Verdict.GO


@pytest.mark.parametrize(("refused", "verdict"), [(0, "go"), (3, "no-go"), (None, "unknown")])
def test_other_tenants_are_looked_at(refused: int | None, verdict: str) -> None:
    assert judge.others(refused).verdict.value == verdict


def test_failures_are_a_fault() -> None:
    assert whole([*GOOD, refused(2.0, error="INTERNAL")])["nothing"] is Verdict.NO_GO


# --- the report ----------------------------------------------------------------------------------


def result(sent: Sequence[Sent] = GOOD, samples: Sequence[Sample] = (*CLIMB, *FALL)) -> Result:
    return Result(
        VERSION, 1_700_000_000.0, 24.0, "headrace drill", ORDER, "every rung was reached", False,
        judge.rungs(ORDER, samples, sent), judge.ladder(ORDER, samples, sent, False), len(sent), 3, 1, 0, samples,
        per_second(sent),
    )  # fmt: skip


def test_a_result_comes_back_as_it_was_written() -> None:
    written = decode(encode(result()))
    assert encode(written) == encode(result())
    assert written.rungs[0].check == result().rungs[0].check
    assert not written.passed, "the protected tenant was not looked at"
    assert replace(written, checks=[Check("all", Verdict.GO, "")]).passed


def test_a_result_of_another_version_is_not_read() -> None:
    with pytest.raises(ValueError, match="version 99"):
        decode(encode(replace(result(), version=99)))


def test_requests_second_by_second() -> None:
    seconds = per_second([*GOOD, refused(1.7), Sent(Kind.LOAD, 3.9, 0)])
    assert [(each.sent, each.answered, each.refused) for each in seconds] == [
        (1, 1, 0),
        (2, 1, 1),
        (1, 1, 0),
        (2, 0, 1),
    ]
    assert seconds[0].first_p50_s == 0.1
    assert seconds[0].probe_tokens == 82
    assert seconds[3].first_p50_s is None
    assert per_second([]) == []


def test_the_page_has_every_rung_and_every_plot() -> None:
    drawn = plots.draw(result())
    assert len({plot.name for plot in drawn}) == 5
    assert all(plot.png.startswith(b"\x89PNG") for plot in drawn)
    text = page.render(result(), drawn)
    assert all(rung.name in text for rung in LADDER)
    assert text.count("data:image/png") == 5
    assert "3 of 3 rungs did what they say" in text


def test_the_page_escapes_what_the_mesh_said() -> None:
    assert "<script>" not in page.render(replace(result(), stopped="<script>alert(1)</script>"), [])
