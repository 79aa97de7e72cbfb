"""What the batcher's queue costs: microseconds per operation, by how many works of how many tenants wait.

    python -m tests.bench.queue [--rounds 5] [--turns 20000] [--out FILE.json]

Each round fills a queue from a seed and then takes turns in it: a work arrives, the next one leaves. The table shows
medians over the rounds. It is processor time: the queue waits for nothing, and other processes do not count.

    heap        what Python's own heap takes for the same: a tuple pushed, another popped
    turn        push, peek, remove
    dispatch    the same, and what the tenant is charged and, at the end, given back
    look        the same, and the new work is parked and put back before: one that asks who remembers its prefix
    ahead       tokens_ahead of a work that comes
    bytes       memory per waiting work, the `Entry` included
"""

import argparse
import json
import platform
import random
import statistics
import time
import tracemalloc
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from libs.lane.work import Tier
from services.batcher.fairness import Counters
from services.batcher.queue import Entry, WaitQueue

LIMIT_US = 10.0
"""What a turn may cost where 10,000 works of 100 tenants wait."""
CASES = ((100, 10), (10_000, 1), (10_000, 100), (10_000, 10_000), (100_000, 1), (100_000, 10_000))
RATE = 1_000.0
"""Works per second."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one case; microseconds of each round."""

    works: int
    tenants: int
    heap_us: list[float]
    turn_us: list[float]
    dispatch_us: list[float]
    look_us: list[float]
    ahead_us: list[float]
    bytes_per_work: int


def entries(first: int, count: int, tenants: int) -> list[Entry]:
    """Works as they come, a quarter of them async; half of their tenants are a tenth of all."""
    chance = random.Random(first)
    made = []
    for key in range(first, first + count):
        arrived = key / RATE
        tenant = chance.randrange(tenants) if chance.random() < 0.5 else chance.randrange(-(-tenants // 10))
        tier = Tier.ASYNC if chance.random() < 0.25 else Tier.INTERACTIVE
        tokens = round(chance.lognormvariate(6.5, 1.0)) + 1
        due = arrived + max(2.0, tokens / 1_000)
        made.append(Entry(key, tier, tokens, arrived, f"t{tenant}", 1.0 + tenant % 3, due))
    return made


def filled(works: int, tenants: int) -> tuple[WaitQueue, Counters]:
    """A queue in which so many wait, of about so many tenants."""
    counters = Counters()
    queue = WaitQueue(counters)
    for entry in entries(0, works, tenants):
        queue.push(entry)
    return queue, counters


def heap(works: int, tenants: int, count: int) -> float:
    """Microseconds for a push and a pop."""
    waiting = [(entry.due, entry.key) for entry in entries(0, works, tenants)]
    heapify(waiting)
    coming = entries(works, count, tenants)
    started = time.thread_time()
    for entry in coming:
        heappush(waiting, (entry.due, entry.key))
        heappop(waiting)
    return (time.thread_time() - started) / count * 1e6


def turns(works: int, tenants: int, count: int, *, charge: bool = False, look: bool = False) -> float:
    """Microseconds per turn."""
    queue, counters = filled(works, tenants)
    coming = entries(works, count, tenants)
    started = time.thread_time()
    for entry in coming:
        now = entry.arrived
        queue.push(entry)
        if look:
            queue.park(entry.key, now + 0.1, "look")
            queue.unpark("look")
        head = queue.peek(now)
        assert head is not None
        queue.remove(head.key)
        if charge:
            counters.charge(head.tenant, head.tokens, 200, head.weight)
            counters.settle(head.tenant, 200, 150, head.weight)
    return (time.thread_time() - started) / count * 1e6


def ahead(works: int, tenants: int, count: int) -> float:
    """Microseconds per estimate."""
    queue, _ = filled(works, tenants)
    coming = entries(works, count, tenants)
    started = time.thread_time()
    for entry in coming:
        queue.tokens_ahead(entry)
    return (time.thread_time() - started) / count * 1e6


def memory(works: int, tenants: int) -> int:
    """Bytes per work."""
    tracemalloc.start()
    kept = filled(works, tenants)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used // len(kept[0])


def measure(works: int, tenants: int, rounds: int, count: int) -> Result:
    """One case."""
    every = range(rounds)
    return Result(
        works,
        tenants,
        [round(heap(works, tenants, count), 2) for _ in every],
        [round(turns(works, tenants, count), 2) for _ in every],
        [round(turns(works, tenants, count, charge=True), 2) for _ in every],
        [round(turns(works, tenants, count, look=True), 2) for _ in every],
        [round(ahead(works, tenants, max(count // 50, 1)), 2) for _ in every],
        memory(works, tenants),
    )


def main() -> None:
    """Entry point; exits with 1 when a turn takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="also write every run as JSON")
    arguments = parser.parse_args()
    results = [measure(works, tenants, arguments.rounds, arguments.turns) for works, tenants in CASES]
    table = Table(title="The queue, in microseconds")
    for column in ("works", "tenants", "heap", "turn", "dispatch", "look", "ahead", "bytes"):
        table.add_column(column, justify="right")
    for one in results:
        figures = (one.heap_us, one.turn_us, one.dispatch_us, one.look_us, one.ahead_us)
        medians = (f"{statistics.median(figure):.1f}" for figure in figures)
        table.add_row(f"{one.works:,}", f"{one.tenants:,}", *medians, f"{one.bytes_per_work:,}")
    console = Console(width=110)
    console.print(table)
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}"
    console.print(machine)
    if arguments.out:
        cases = [asdict(one) for one in results]
        arguments.out.write_text(json.dumps({"machine": machine, "turns": arguments.turns, "cases": cases}, indent=1))
    judged = next(one for one in results if (one.works, one.tenants) == (10_000, 100))
    if statistics.median(judged.turn_us) > LIMIT_US:
        raise SystemExit(f"a turn took more than {LIMIT_US:g} µs")


if __name__ == "__main__":
    main()
