"""What a sweep is told as: a document for programs, and a table for people. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from libs.catalogue.options import Simulation
from services.simulator.measure import COOL_DOWN, WARM_UP, Group, Slo
from services.simulator.mix import Mix
from services.simulator.points import Point, knee
from services.simulator.values import Setup

VERSION = 1
"""Of the document; grows with every change that a reader would notice."""
EVEN = 1.005
"""Goodputs that are closer than this ratio are called the same."""


@dataclass(frozen=True, slots=True)
class About:
    """Where a report comes from."""

    command: str
    """The command line, to run it again."""
    trace: str
    """The file's name."""
    form: str
    trace_requests: int
    trace_s: float
    mix: Mix
    """Of the first load; the loads differ in rate and copies alone."""
    setup: Setup
    gpu: str
    source: str
    """Of the constants of the step model."""
    slo: Slo


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    title: str
    unit: str
    note: str
    """What it means, for the reading guide."""


COLUMNS = (
    Column("policy", "", "who chooses the executor"),
    Column("offered", "req/s", "requests that arrived"),
    Column("goodput", "req/s", "answered whole and within the SLO"),
    Column("within SLO", "%", "goodput over offered"),
    Column("answered", "%", "answered whole, in whatever time; the rest was refused or ran out of time"),
    Column("TTFT p50", "s", "time to first token, from the arrival at the batcher"),
    Column("p90", "s", "of the same"),
    Column("p99", "s", "of the same"),
    Column("between p99", "ms", "mean time between the tokens of a request"),
    Column("worst gap p99", "ms", "the longest time between two tokens of a request"),
    Column("end p99", "s", "end to end: arrival to last token"),
    Column(
        "queue p99", "s", "in the batcher's queue; policies that bind early queue in the engines, which is not in it"
    ),
    Column("wait p99", "s", "time to first token less what an idle executor without cache takes: all waiting there is"),
    Column("hits", "%", "prompt tokens found in a cache"),
    Column("output", "tokens/s", "of requests that ended in the counted time"),
    Column("evicted", "blocks", "blocks that left prefix caches, in the whole simulation"),
    Column("preempted", "", "requests that an engine threw out for lack of blocks, to compute them again"),
    Column("pushed", "", "requests that the batcher took off an executor for more urgent ones"),
    Column("fairness", "", "Jain's index of the backlogged tenants' service, mean over windows; – without competition"),
)


def row(point: Point) -> list[str]:
    """A point in the order of COLUMNS."""
    group, whole = point.measures.all, point.measures
    return [
        point.policy,
        _figure(group.offered_per_s),
        _figure(group.goodput_per_s),
        f"{100 * group.good_share:.1f}",
        f"{100 * group.answered / group.requests:.1f}" if group.requests else "–",
        _figure(group.first_token.p50),
        _figure(group.first_token.p90),
        _figure(group.first_token.p99),
        _figure(group.gap.p99, 1000),
        _figure(group.worst_gap.p99, 1000),
        _figure(group.end_to_end.p99),
        _figure(group.queued.p99),
        _figure(group.waited.p99),
        f"{100 * group.hit_rate:.1f}",
        f"{whole.output_tokens_per_s:,.0f}",
        f"{whole.evictions:,}",
        f"{whole.engine_preemptions:,}",
        f"{group.pushed:,}",
        "–" if whole.fairness.mean is None else f"{whole.fairness.mean:.3f}",
    ]


def groups(points: Sequence[Point]) -> list[tuple[str, list[tuple[str, Group]]]]:
    """Tiers and tenants at the load that is shown in detail: (policy, its groups)."""
    at = knee(points)
    found = []
    for each in points:
        parts = [*each.measures.tiers.items(), *each.measures.tenants.items()]
        if each.load == at and parts:
            found.append((each.policy, parts))
    return found


def group_row(name: str, group: Group) -> list[str]:
    """A tier or a tenant in the order of GROUP_TITLES."""
    return [
        name,
        f"{group.requests:,}",
        f"{100 * group.good_share:.1f}",
        _figure(group.first_token.p50),
        _figure(group.first_token.p99),
        _figure(group.queued.p99),
        f"{100 * group.hit_rate:.1f}",
        _refused(group) or "–",
    ]


GROUP_TITLES = (
    "",
    "requests",
    "within SLO (%)",
    "TTFT p50 (s)",
    "TTFT p99 (s)",
    "queue p99 (s)",
    "hits (%)",
    "refused",
)


MISSED_TITLES = ("load", "policy", "late first token", "slow tokens", "not answered")


def missed(point: Point) -> list[str]:
    """Why requests were not within the SLO, in the order of MISSED_TITLES; empty where all were."""
    group = point.measures.all
    if group.good == group.requests:
        return []
    return [point.load.name, point.policy, _count(group.late), _count(group.slow), _refused(group) or "–"]


def verdict(points: Sequence[Point]) -> list[str]:
    """What the sweep shows, in a few sentences: at the knee, and at the heaviest load."""
    found = []
    at = knee(points)
    heaviest = max((each.load for each in points), key=lambda load: load.requests_per_s)
    for load in dict.fromkeys((at, heaviest)):
        here = sorted((each for each in points if each.load == load), key=lambda each: -each.measures.all.goodput_per_s)
        best, rest = here[0], here[1:]
        most = best.measures.all
        sentence = (
            f"At {load.name} ({_figure(most.offered_per_s)} requests/s) {best.policy} has the highest goodput: "
            f"{_figure(most.goodput_per_s)} requests/s, {100 * most.good_share:.1f}% of what was offered"
        )
        if rest and rest[0].measures.all.goodput_per_s:
            ratio = most.goodput_per_s / rest[0].measures.all.goodput_per_s
            next_best = rest[0].policy
            sentence += (
                f"; {next_best} has as much" if ratio < EVEN else f"; {ratio:.2f} times that of {next_best}, the next"
            )
        found.append(f"{sentence}.")
    return found


def constants(step: Simulation) -> list[tuple[str, float]]:
    """The constants of the step model that are set."""
    return [
        (each.name, getattr(step, each.name))
        for each in fields(Simulation)
        if each.name not in ("seed", "load_us") and getattr(step, each.name)
    ]


def document(about: About, points: Sequence[Point]) -> dict[str, Any]:
    """For result.json. Times in seconds unless a name says otherwise."""
    setup = asdict(about.setup)
    setup["tiers"] = {tier.name.lower(): rules for tier, rules in setup["tiers"].items()}
    del setup["scheduling"]["dispatch"]  # each point has its own
    return {
        "version": VERSION,
        "command": about.command,
        "trace": {"file": about.trace, "format": about.form, "requests": about.trace_requests, "s": about.trace_s},
        "mix": asdict(about.mix),
        "setup": setup,
        "gpu": {"name": about.gpu, "source": about.source},
        "slo": asdict(about.slo),
        "left_out": {"warm_up": WARM_UP, "cool_down": COOL_DOWN},
        "points": [_point(each) for each in points],
    }


def _point(point: Point) -> dict[str, Any]:
    return {name: value for name, value in asdict(point).items() if value not in (None, {})}


def mix_words(mix: Mix) -> Mapping[str, str]:
    """The mix, for people; only what differs from the trace as it is."""
    words = {}
    if mix.first_s:
        words["cut"] = f"the first {mix.first_s:g} s of the trace"
    if mix.requests:
        words["requests"] = f"the first {mix.requests:,} of the trace"
    if mix.spread_s:
        words["spread"] = f"each arrival moved forward by up to {mix.spread_s:g} s"
    if len(mix.tenants) > 1:
        shares = ", ".join(f"{each.name} {each.share:g}" for each in mix.tenants[:8])
        words["tenants"] = f"{len(mix.tenants)}: {shares}{', …' if len(mix.tenants) > 8 else ''}"
    if mix.async_share:
        words["async"] = f"{100 * mix.async_share:g}% of the conversations"
    if mix.adapters:
        words["adapters"] = str(mix.adapters)
    return words


def _refused(group: Group) -> str:
    """ "overloaded 12, deadline passed 3"; empty where all were answered."""
    return ", ".join(f"{reason.lower().replace('_', ' ')} {count:,}" for reason, count in group.refusals.items())


def _count(number: int) -> str:
    return f"{number:,}" if number else "–"


def _figure(value: float | None, scale: float = 1.0) -> str:
    """Three digits that count; – where there is nothing."""
    if value is None:
        return "–"
    value *= scale
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 or not value else f"{value:.3f}"
