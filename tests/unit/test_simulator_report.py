"""What a sweep is told as: the document, the table, the plots and the page."""

import json
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.batcher.rules import TierRules
from services.simulator import page, plots, report
from services.simulator.measure import Slo
from services.simulator.mix import Mix, tenants
from services.simulator.points import CURVE_POINTS, MOST_SAMPLES, Load, Point, knee, point
from services.simulator.report import COLUMNS, GROUP_TITLES, About
from services.simulator.values import OK, Arrival, Result, Sample, Served, Setup

SETUP = Setup(
    executors=2,
    step=Simulation(step_base_us=1000, prefill_token_us=100),
    slots=4,
    blocks=100,
    block_tokens=16,
    step_tokens=100,
    tiers={Tier.INTERACTIVE: TierRules(target_s=3.0)},
)
ABOUT = About(
    command="headrace simulate 'a <b>.csv' --rate 1,2",
    trace="a <b>.csv",
    form="azure",
    trace_requests=1234,
    trace_s=99.0,
    mix=Mix(tenants=tenants("2"), async_share=0.25, first_s=60.0),
    setup=SETUP,
    gpu="h100-8b",
    source="a roofline & its sources",
    slo=Slo(),
)
LIGHT, HEAVY = Load("×1", 1.0, 100), Load("×2", 2.0, 100)


def made(policy: str, load: Load, late: int, refused: int = 0, tenants: int = 2) -> Point:
    """A point of 100 requests, of which the last ones are late or refused."""
    served = []
    for number in range(100):
        arrival = Arrival(
            number / load.requests_per_s, f"t{number % tenants}", Tier(1 + (number % 4 == 0)), 100, 11, (), 16
        )
        answer = Served(arrival, OK, 0.0, 0.5, 1.0, 20, 11, "executor-000", 0.02, 0.01, 0)
        if number >= 100 - refused:
            answer = replace(answer, outcome="OVERLOADED", first_token_s=None, output_tokens=0)
        elif number >= 100 - refused - late:
            answer = replace(answer, first_token_s=9.0, end_s=10.0)
        served.append(answer)
    samples = [Sample(float(at), at % 7, at % 3, at % 5, 0.5, 0.25) for at in range(2000)]
    result = Result(served, evictions=3, engine_preemptions=1, steps=50, end_s=2000.0, wall_s=0.5, samples=samples)
    return point(policy, load, SETUP, Slo(), result)


POINTS = [
    made("promise", LIGHT, late=0), made("promise", HEAVY, late=10, refused=20),
    made("round_robin", LIGHT, late=5), made("round_robin", HEAVY, late=60),
]  # fmt: skip


def test_a_point_keeps_curves_of_bounded_length() -> None:
    kept = POINTS[0]
    assert len(kept.first_token_curve) == CURVE_POINTS
    assert len(kept.samples) <= MOST_SAMPLES
    assert kept.service is not None
    assert {len(rates) for rates in kept.service.tenants.values()} == {len(kept.service.at)}
    assert made("promise", LIGHT, late=0, tenants=1).service is None
    assert made("promise", LIGHT, late=0, refused=100).first_token_curve == []


def test_the_load_shown_in_detail_is_the_last_that_somebody_holds() -> None:
    assert knee(POINTS) == LIGHT
    assert knee([*POINTS, made("block_cost", HEAVY, late=2)]) == HEAVY
    assert knee([POINTS[3], made("block_cost", LIGHT, late=90)]) == LIGHT
    with pytest.raises(ValueError, match="no knee"):
        knee([])


def test_a_row_has_a_cell_for_each_column() -> None:
    titles = [column.title for column in COLUMNS]
    row = dict(zip(titles, report.row(POINTS[1]), strict=True))
    group = POINTS[1].measures.all
    assert row["policy"] == "promise"
    assert row["within SLO"] == f"{100 * group.good / group.requests:.1f}"
    assert row["answered"] == f"{100 * group.answered / group.requests:.1f}"
    assert row["TTFT p50"] == "0.500"
    assert row["between p99"] == "10.0"
    assert row["hits"] == "20.0"
    assert row["evicted"] == "3"
    nobody = report.row(made("promise", LIGHT, late=0, refused=100))
    assert dict(zip(titles, nobody, strict=True))["p99"] == "–"


def test_what_was_missed_is_told_by_reason() -> None:
    group = POINTS[1].measures.all
    told = report.missed(POINTS[1])
    assert told == ["×2", "promise", str(group.late), "–", f"overloaded {group.refusals['OVERLOADED']}"]
    assert len(told) == len(report.MISSED_TITLES)
    assert report.missed(POINTS[0]) == []


def test_the_verdict_is_about_the_knee_and_the_heaviest_load() -> None:
    at_knee, at_heaviest = report.verdict(POINTS)
    assert at_knee.startswith("At ×1 (1.01 requests/s) promise has the highest goodput")
    assert "times that of round_robin, the next." in at_heaviest
    assert len(report.verdict(POINTS[:1])) == 1
    assert report.verdict([POINTS[0], made("block_cost", LIGHT, late=0)])[0].endswith("block_cost has as much.")


def test_tiers_and_tenants_have_rows() -> None:
    found = dict(report.groups(POINTS))
    assert [name for name, _ in found["promise"]] == ["interactive", "async", "t0", "t1"]
    assert all(len(report.group_row(*part)) == len(GROUP_TITLES) for part in found["promise"])


def test_the_document_is_json_with_everything_in_it() -> None:
    said = json.loads(json.dumps(report.document(ABOUT, POINTS), allow_nan=False))
    assert said["command"] == ABOUT.command
    assert said["setup"]["step"]["step_base_us"] == 1000
    assert said["setup"]["tiers"]["interactive"]["target_s"] == 3.0
    assert said["gpu"] == {"name": "h100-8b", "source": "a roofline & its sources"}
    assert said["mix"]["async_share"] == 0.25
    assert said["left_out"] == {"warm_up": 0.1, "cool_down": 0.05}
    assert [(each["policy"], each["load"]["name"]) for each in said["points"]] == [
        ("promise", "×1"), ("promise", "×2"), ("round_robin", "×1"), ("round_robin", "×2"),
    ]  # fmt: skip
    assert said["points"][0]["measures"]["all"]["first_token"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5}


class Page(HTMLParser):
    """Everything that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_needs_no_other_file_and_shows_every_plot() -> None:
    drawn = plots.draw(POINTS, knee(POINTS).name, Slo())
    names = [plot.name for plot in drawn]
    assert names == [
        "goodput", "first-token", "first-token-distribution", "gaps", "hit-rate", "wait", "over-time", "service",
    ]  # fmt: skip
    for plot in drawn:
        assert plot.png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", plot.png[16:24])
        assert width >= 1000
        assert height >= 500
    text = page.render(ABOUT, POINTS, drawn)
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.references) == len(drawn)
    assert all(reference.startswith("data:image/png;base64,") for reference in parsed.references)
    assert not re.search(r"https?://|@import|<script", text)
    assert "a &lt;b&gt;.csv" in text
    assert "<b>.csv" not in text
    for word in ("a roofline &amp; its sources", "step_base_us", "25% of the conversations", "overloaded"):
        assert word in text


def test_one_policy_at_one_load_can_be_shown() -> None:
    alone = [made("promise", LIGHT, late=0, refused=100, tenants=1)]
    drawn = plots.draw(alone, LIGHT.name, Slo())
    assert "service" not in [plot.name for plot in drawn]
    assert "promise" in page.render(ABOUT, alone, drawn)
