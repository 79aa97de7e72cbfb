"""What the batcher's estimates cost: lengths, rates and promises, in µs per call.

    python -m tests.bench.estimates [--rounds 7] [--out FILE.json]

Answers of many tenants with lengths of a log-normal distribution, one in five cut by max_tokens; each round in a
fresh table. Prints medians over the rounds.
"""

import argparse
import json
import platform
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from services.batcher import promise
from services.batcher.lengths import MOST_PAIRS, Lengths
from services.batcher.rates import Rates

CALLS = 20_000
TENANTS = (1, 50, 2000)


def lengths_case(tenants: int) -> Callable[[], int]:
    """What a request costs: `expected` twice (median for its promise, a high one for its blocks), `seen` once."""
    chance = random.Random(1)
    answers = [(f"t{chance.randrange(tenants)}", int(chance.lognormvariate(5, 1)) + 1) for _ in range(CALLS)]
    lengths = Lengths()

    def run() -> int:
        for tenant, tokens in answers:
            lengths.expected(tenant, "m", 512, 0.5)
            lengths.expected(tenant, "m", 512, 0.9)
            lengths.seen(tenant, "m", min(tokens, 512), tokens > 512)
        return 3 * CALLS

    return run


def rates_case() -> Callable[[], int]:
    """Works that come, have their first token and end, 32 at once."""

    def run() -> int:
        rates, now = Rates(), 0.0
        for key in range(CALLS):
            now += 0.01
            rates.placed(key, 500, now)
            rates.first_token(key - 4, now)
            rates.ended(key - 32, now, 100)
        return 3 * CALLS

    return run


def promise_case(left_s: float) -> Callable[[], int]:
    """An estimate held against a deadline; where it is broken, with the reason."""

    def run() -> int:
        for tokens in range(CALLS):
            promise.broken(promise.estimate(tokens, 1000, 500, 100, 50_000.0, 10_000.0, 0.02), left_s)
        return CALLS

    return run


CASES: Mapping[str, Callable[[], Callable[[], int]]] = {
    **{f"lengths, {tenants} tenants": partial(lengths_case, tenants) for tenants in TENANTS},
    "rates": rates_case,
    "promise, kept": partial(promise_case, 60.0),
    "promise, broken": partial(promise_case, 0.1),
}


def table_bytes() -> int:
    """Memory of a full table of lengths."""
    tracemalloc.start()
    lengths = Lengths()
    for number in range(MOST_PAIRS):
        for _ in range(2):
            lengths.seen(f"tenant {number}", "m", 100 + number)
            lengths.expected(f"tenant {number}", "m", 512, 0.5)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the medians as JSON")
    arguments = parser.parse_args()
    runs: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, make in CASES.items():
            run = make()
            start = time.process_time()
            calls = run()
            runs[name].append((time.process_time() - start) / calls * 1e6)
    medians = {name: round(statistics.median(times), 2) for name, times in runs.items()}
    table = Table(title="Estimates: CPU µs per call")
    table.add_column("case")
    table.add_column("µs", justify="right")
    for name, micros in medians.items():
        table.add_row(name, f"{micros:.2f}")
    megabytes = round(table_bytes() / 1e6, 1)
    machine = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, {platform.python_version()}"
    Console().print(
        table, f"a full table of lengths: {megabytes} MB", f"{machine}; {arguments.rounds} rounds", sep="\n"
    )
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"machine": machine, "us_per_call": medians, "full_table_mb": megabytes}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
