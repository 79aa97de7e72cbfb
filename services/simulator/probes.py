"""What is sent to an executor to learn how long its steps take, and what the answers' times say. Pure.

Three kinds of probes, each of which shows other constants:

- a prompt alone: its first token comes after the steps of the prompt, plus the way through the mesh;
- a batch: while all of it decodes, every step makes a token of each, and its length is the gap between tokens;
- a prompt that comes into a batch: the gaps of the batch grow by the tokens computed in between.

Every third probe of a kind is held back: the constants are fitted to the others, and judged by these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from services.simulator.fit import Observation, Shape, prefill

SHORT = 32
OUTPUT = 32
LEAST_STEPS = 8
"""A batch that decodes together for fewer steps says nothing."""
AHEAD = 4
"""Tokens that a batch makes before a prompt comes into it."""
LEAST_LONGEST = 128
MOST_AT_ONCE = 2
"""Longest prompts' worth of tokens that a batch has at most: on a slow engine computing them takes most of the time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The model, as its catalogue entry says."""

    context_tokens: int
    cache_tokens: int
    slots: int
    step_tokens: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Requests that are sent together, and perhaps one that follows."""

    width: int
    prompt_tokens: int
    output_tokens: int
    late_tokens: int = 0
    """Prompt of the one that follows when all of the others decode; 0 for none."""
    held_back: bool = False

    @property
    def kind(self) -> str:
        """ "prefill", "decode" or "mixed"."""
        return "mixed" if self.late_tokens else "decode" if self.output_tokens > 1 else "prefill"


@dataclass(frozen=True, slots=True)
class Timed:
    """An answer: when it was asked for, and when how many of its tokens were there. Seconds of one clock."""

    asked: float
    prompt_tokens: int
    cached_tokens: int
    arrivals: Sequence[tuple[float, int]]
    """(time, tokens so far), in order."""


def design(facts: Facts, longest: int = 0, widest: int = 0) -> list[Probe]:
    """The probes for a model.

    Args:
        longest: Tokens of the longest prompt; 0: half of what fits, at most 4,096.
        widest: Most requests at once; 0: the slots, at most 16.

    Raises ValueError for a model that has no room for them.
    """
    room = min(facts.context_tokens, facts.cache_tokens)
    longest = min(longest or min(room // 2, 4096), room - 2 * OUTPUT)
    widest = min(widest or 16, facts.slots)
    if longest < LEAST_LONGEST:
        raise ValueError(f"prompts of {longest} tokens are too short to measure: at least {LEAST_LONGEST} are needed")
    lengths = [
        max(SHORT, round(longest * share)) for share in (1 / 64, 1 / 24, 1 / 12, 1 / 6, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
    ]
    probes = [Probe(1, length, 1) for length in dict.fromkeys(lengths)]
    widths = [width for width in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if width <= widest]
    for prompt in (SHORT, longest // 4, longest):
        probes += [
            Probe(width, prompt, output)
            for width in widths
            if (output := _output(width, prompt, facts)) + prompt <= facts.context_tokens
            if width * (prompt + output) <= facts.cache_tokens
            if width * prompt <= MOST_AT_ONCE * longest
        ]
    for width in dict.fromkeys((widths[len(widths) // 3], widths[2 * len(widths) // 3])):
        for late in (longest // 4, longest // 2, longest):
            chunks = -(-late // max(1, facts.step_tokens - width))
            output = OUTPUT + 2 * chunks + _output(width, SHORT, facts)
            if width * (SHORT + output) + late <= facts.cache_tokens and SHORT + output <= facts.context_tokens:
                probes.append(Probe(width, SHORT, output, late))
    seen: dict[str, int] = {}
    chosen = []
    for probe in probes:
        seen[probe.kind] = seen.get(probe.kind, -1) + 1
        held_back = seen[probe.kind] % 3 == 1
        chosen.append(Probe(probe.width, probe.prompt_tokens, probe.output_tokens, probe.late_tokens, held_back))
    return chosen


def observe(probe: Probe, facts: Facts, batch: Sequence[Timed], late: Timed | None) -> Observation | None:
    """What one run of a probe shows; None where its requests did not meet as they should, or met a cache."""
    if any(each.cached_tokens or not each.arrivals for each in [*batch, *([late] if late else [])]):
        return None
    if probe.kind == "prefill":
        alone = batch[0]
        seconds = alone.arrivals[0][0] - alone.asked
        return Observation(probe.kind, seconds, prefill(alone.prompt_tokens, facts.step_tokens), alone.prompt_tokens)
    together = max(each.arrivals[0][0] for each in batch), min(each.arrivals[-1][0] for each in batch)
    if late is None:
        return _steady(probe, batch, *together)
    return _disturbed(probe, facts, batch, late, *together)


def quickest(observations: Sequence[Observation]) -> Observation:
    """The one of several runs of a probe that is believed: whatever disturbs a run only delays it."""
    return min(observations, key=lambda each: each.seconds / sum(shape.steps for shape in each.shapes))


def _output(width: int, prompt: int, facts: Facts) -> int:
    """Tokens of an answer, so that the first of a batch still decodes when the last one begins."""
    return OUTPUT + 2 * (-(-width * prompt // facts.step_tokens))


def _steady(probe: Probe, batch: Sequence[Timed], start: float, end: float) -> Observation | None:
    steps, gap, context = _gap(batch, start, end)
    if steps < LEAST_STEPS:
        return None
    return Observation(probe.kind, steps * gap, (Shape(steps, decode=len(batch), decode_context=context),))


def _disturbed(
    probe: Probe, facts: Facts, batch: Sequence[Timed], late: Timed, start: float, end: float
) -> Observation | None:
    """The batch's steps from before the late prompt was sent to after its first token."""
    first = late.arrivals[0][0]
    if not start < late.asked < first < end:
        return None
    before = [max(time for time, _ in each.arrivals if time <= late.asked) for each in batch]
    after = [next((time for time, _ in each.arrivals if time > first), end) for each in batch]
    steps, gap, context = _gap(batch, min(before), max(after))
    shapes = prefill(late.prompt_tokens, facts.step_tokens, len(batch), context)
    rest = steps - len(shapes)
    if rest < 0:
        return None
    steady = Shape(rest, decode=len(batch), decode_context=context)
    return Observation(probe.kind, steps * gap, (*shapes, steady) if rest else shapes)


def _gap(batch: Sequence[Timed], start: float, end: float) -> tuple[float, float, float]:
    """Between two times: the steps, the seconds of each, and the contexts added up in the middle of the time."""
    counts, gaps, context = [], [], 0.0
    for each in batch:
        inside = [(time, tokens) for time, tokens in each.arrivals if start <= time <= end]
        if len(inside) < 2:
            return 0.0, 0.0, 0.0
        (began, first), (ended, last) = inside[0], inside[-1]
        counts.append(last - first)
        gaps.append((ended - began) / (last - first))
        context += each.prompt_tokens + (first + last) / 2
    return median(counts), median(gaps), context
