"""Measures a live executor through the mesh's public API, and fits the step model to it.

The executor is to have nothing else to do, and to be the only one of its model: the requests of a batch have to meet.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from libs.client import CapacityError, GenerateOptions, HeadraceClient, HeadraceError
from services.simulator import probes
from services.simulator.fit import Fit, Observation, fit
from services.simulator.probes import Facts, Probe, Timed

WORDS = (
    "river", "stone", "light", "winter", "market", "garden", "window", "paper", "silver", "morning", "forest",
    "letter", "bridge", "summer", "mountain", "yellow", "table", "number", "story", "music", "water", "doctor",
    "station", "island", "village", "picture", "teacher", "engine", "shadow", "orange",
)  # fmt: skip
PATIENCE_S = 300.0
"""For one request."""
WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of it."""

    fit: Fit
    dropped: int
    """Runs of probes whose requests did not meet, met a cache, or were refused."""


Told = Callable[[int, int], None]
"""Called with the runs of probes that are done, and their number."""


async def calibrate(
    client: HeadraceClient, model: str, facts: Facts, designed: Sequence[Probe], repeats: int, seed: int, told: Told
) -> Calibration:
    """Sends every probe `repeats` times and fits. Takes minutes on a slow engine.

    Raises libs.client.HeadraceError where a request fails for another reason than load, ValueError where too little
    could be measured.
    """
    draw = random.Random(seed)  # noqa: S311  prompts, not secrets
    prompts = _Prompts(draw, await _tokens_per_word(client, model))
    asker = _Asker(client, model, prompts)
    for _ in range(WARM_UPS):
        await asker.ask(probes.SHORT, probes.SHORT)
    seen: dict[Probe, list[Observation]] = {probe: [] for probe in designed}
    dropped = 0
    # Round by round, each in an order of its own: what else happens on the machine then meets all kinds alike.
    runs = [probe for _ in range(repeats) for probe in draw.sample(designed, len(designed))]
    for number, probe in enumerate(runs):
        try:
            observation = probes.observe(probe, facts, *await asker.run(probe))
        except CapacityError:  # the mesh would not queue so much: as if its requests had not met
            observation = None
        if observation is None:
            dropped += 1
        else:
            seen[probe].append(observation)
        told(number + 1, len(runs))
    believed = {probe: probes.quickest(found) for probe, found in seen.items() if found}
    fitted = [observation for probe, observation in believed.items() if not probe.held_back]
    held_back = [observation for probe, observation in believed.items() if probe.held_back]
    return Calibration(fit(fitted, held_back), dropped)


class _Prompts:
    """Texts of about so many tokens, none of which begins like another."""

    def __init__(self, draw: random.Random, tokens_per_word: float) -> None:
        self._draw = draw
        self._tokens_per_word = tokens_per_word

    def make(self, tokens: int) -> str:
        count = max(1, round(tokens / self._tokens_per_word))
        return " ".join(self._draw.choices(WORDS, k=count))


class _Asker:
    """Sends requests, and notes when their tokens come."""

    def __init__(self, client: HeadraceClient, model: str, prompts: _Prompts) -> None:
        self._client = client
        self._model = model
        self._prompts = prompts

    async def run(self, probe: Probe) -> tuple[list[Timed], Timed | None]:
        """One run of a probe. Raises what its first failing request raised."""
        decoding = [asyncio.Event() for _ in range(probe.width)]
        late: asyncio.Task[Timed] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                batch = [
                    group.create_task(self.ask(probe.prompt_tokens, probe.output_tokens, event)) for event in decoding
                ]
                if probe.late_tokens:
                    late = group.create_task(self._follow(probe.late_tokens, decoding))
        except* (HeadraceError, ValueError) as errors:
            raise errors.exceptions[0] from None
        return [each.result() for each in batch], late.result() if late else None

    async def ask(self, prompt_tokens: int, output_tokens: int, decoding: asyncio.Event | None = None) -> Timed:
        """One request; `decoding` is set when its first tokens are there, or it has ended."""
        options = GenerateOptions(
            max_tokens=output_tokens,
            temperature=0,
            ignore_end=True,
            output="token_ids",
            tier="async",  # which may wait longer in the queue before it is refused
            timeout=PATIENCE_S,
        )
        text = self._prompts.make(prompt_tokens)
        asked = time.perf_counter()
        arrivals: list[tuple[float, int]] = []
        count = 0
        async for chunk in self._client.generate(self._model, prompt=text, options=options):
            if chunk.token_ids:
                count += len(chunk.token_ids)
                arrivals.append((time.perf_counter(), count))
            if decoding is not None and (count >= probes.AHEAD or chunk.finish):
                decoding.set()
            if chunk.finish is not None:
                usage = chunk.finish.usage
                return Timed(asked, usage.prompt_tokens, usage.cached_tokens, arrivals)
        raise ValueError("an answer had no end")

    async def _follow(self, prompt_tokens: int, decoding: Sequence[asyncio.Event]) -> Timed:
        for event in decoding:
            await event.wait()
        return await self.ask(prompt_tokens, 1)


async def _tokens_per_word(client: HeadraceClient, model: str) -> float:
    text = " ".join(WORDS * 4)
    return (await client.count_tokens(model, prompt=text)).tokens / (4 * len(WORDS))
