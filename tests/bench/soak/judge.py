"""Verdicts on a soak: is a series flat, is anything left. Pure.

A rise is Theil and Sen's: the median of the slopes between all pairs of points (P. K. Sen, "Estimates of the regression
coefficient based on Kendall's tau", JASA 63, 1968), which garbage collections, a busy minute of the machine and other
outliers do not move. The first quarter of a run is its warm-up: caches of bounded size fill, allocators find their
size. Over the rest a series may rise by its tolerance, or by what chance explains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

WARM_UP = 0.25
"""Share of a run that is not judged."""
LEAST_POINTS = 8
"""A series of fewer says nothing."""
CERTAIN = 2.576
"""Standard deviations: a rise counts when there is one in 99 of 100."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much a series may rise over what is judged of it: the larger of both."""

    share: float
    """Of its median."""
    least: float
    """In its unit: what is noise however small the series is."""


@dataclass(frozen=True, slots=True)
class Rise:
    """How a series went, in its unit over what was judged."""

    median: float
    total: float
    low: float
    """The least that chance leaves of `total`."""
    hours: float

    @property
    def per_hour(self) -> float:
        """In its unit."""
        return self.total / self.hours


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that must hold."""

    what: str
    holds: bool
    said: str


def rise(at_s: Sequence[float], values: Sequence[float | None]) -> Rise | None:
    """Of a series without its warm-up; None when too few points are left. A missing value is None or NaN."""
    begin = at_s[0] + WARM_UP * (at_s[-1] - at_s[0]) if at_s else 0.0
    kept = [
        (at, float(value))
        for at, value in zip(at_s, values, strict=True)
        if at >= begin and value is not None and not math.isnan(value)
    ]
    if len(kept) < LEAST_POINTS:
        return None
    times, points = np.array(kept).T
    first, second = np.triu_indices(len(times), 1)
    slopes = np.sort((points[second] - points[first]) / (times[second] - times[first]))
    count = len(times)
    spread = CERTAIN * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = slopes[max(int((len(slopes) - spread) / 2), 0)]
    span = float(times[-1] - times[0])
    return Rise(float(np.median(points)), float(np.median(slopes)) * span, float(low) * span, span / 3600)


def flat(
    what: str, at_s: Sequence[float], values: Sequence[float | None], allowed: Tolerance, unit: str = ""
) -> Verdict:
    """It does not rise: not by more than allowed, or not for certain."""
    found = rise(at_s, values)
    if found is None:
        return Verdict(what, False, "too few points to tell: let it run longer")
    limit = max(allowed.share * found.median, allowed.least)
    said = (
        f"{found.median:,.4g} {unit}, rises by {found.total:+,.2g} in {60 * found.hours:.0f} min "
        f"({found.per_hour:+,.2g} per hour); {limit:,.2g} are allowed"
    )
    return Verdict(what, found.total <= limit or found.low <= 0, said)


def none_left(what: str, before: float, after: float, slack: float) -> Verdict:
    """A count at rest is what it was at rest, or a little more."""
    return Verdict(what, after <= before + slack, f"{before:g} at rest before, {after:g} after; {slack:g} more allowed")


def ended_well(
    outcomes: Mapping[str, Mapping[str, int]], allowed: Mapping[str, frozenset[str]], documented: frozenset[str]
) -> list[Verdict]:
    """Every request ended in a documented way, and but for one in a thousand in one that its kind is there for.

    Args:
        outcomes: How many of each kind had each result: "OK", or the reason of an error.
        allowed: The results of each kind.
        documented: The results that there are.
    """
    strange, unexpected, total = [], [], 0
    for kind, results in outcomes.items():
        for result, count in results.items():
            total += count
            if result not in documented:
                strange.append(f"{count} of {kind}: {result}")
            elif result not in allowed[kind]:
                unexpected.append((count, f"{count} of {kind}: {result}"))
    failed = sum(count for count, _ in unexpected)
    return [
        Verdict("every error is documented", not strange, "; ".join(strange) or f"{total:,} requests"),
        Verdict(
            "each kind ends as it should",
            failed <= total / 1000,
            f"{total - failed:,} of {total:,}" + "".join(f"; {text}" for _, text in unexpected),
        ),
    ]


def complete(what: str, at_s: Sequence[float], longest_s: float) -> Verdict:
    """No hole in what was looked at."""
    hole = max((later - earlier for earlier, later in pairwise(at_s)), default=0.0)
    return Verdict(what, hole <= longest_s, f"{len(at_s)} looks, at most {hole:.0f} s apart; {longest_s:.0f} s allowed")
