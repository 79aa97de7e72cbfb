"""What the prefix index costs: memory, lookups, events, growth, an executor that goes, a restart, questions and reports
in the manager around it; and other designs.

    python -m tests.bench.kv_index [--rounds 5] [--sizes 100000 1000000 10000000] [--out FILE.json]

Blocks lie on 1,000 executors, in chains of 512 that one of them holds, and some that 10 or all of them hold. Hashes
are random, from a seed. Each size, and each design, has a process of its own, for its memory's sake. Times are CPU
time, medians over `--rounds`; where others use the machine, the load average says so, for caches and memory are
shared even then. A half hit is a chain of which the first half is held.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from headrace.kvcache.v1 import kvcache_pb2 as pb
from libs.clock import ManualClock
from libs.kvcache.values import BlockEvent, CacheInfo, CacheState, Exactness, Hashes, PrefixMatch, Question
from libs.kvcache.wire import cache_to_proto, event_to_proto
from libs.telemetry.logs import setup_logs
from services.kvcache.conversation import Turns
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.memory import Memory
from services.kvcache.reporting import TURN_BLOCKS, Reporting
from services.kvcache.reports import Reports
from services.kvcache.trust import COMPARISONS
from services.kvcache.upkeep import Observer, Upkeep
from tests.bench.kv_index_designs import DESIGNS, name

SIZES = (100_000, 1_000_000, 10_000_000)
EXECUTORS = 1000
CHAIN = 512
SCATTERED = 200_000
DESIGN_BLOCKS, DESIGN_EXECUTORS, DESIGN_HOLDERS = 400_000, 100, (1, 10)
INFO = CacheInfo("p", 1 << 20, 64, Exactness.EXACT)

Numbers = dict[str, float]
Blocks = NDArray[np.uint64]


class Case:
    """Random blocks, and a stopwatch."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._random = np.random.default_rng(7)

    def blocks(self, count: int) -> Blocks:
        """Hashes that nobody has had yet."""
        return self._random.integers(1, 1 << 64, count, dtype=np.uint64)

    def chains(self, count: int, length: int) -> list[Blocks]:
        """Chains of them."""
        return [self.blocks(length) for _ in range(count)]

    def us(self, call: Callable[[list[int]], object], chains: Sequence[Blocks], once: bool = False) -> float:
        """Median µs of a call with the hashes of a chain, over the rounds. Each call meets another chain than the one
        before, and like those that come from the network, its hashes have just been made. `once`: every chain in
        one of the rounds only."""
        took = []
        share = len(chains) // self.rounds
        for number in range(self.rounds):
            batch = chains[number * share : (number + 1) * share] if once else chains
            spent = 0.0
            together = max(2048 // len(chains[0]), 1)  # few enough that the first is still warm when its turn comes
            for start in range(0, len(batch), together):
                ready = [chain.tolist() for chain in batch[start : start + together]]
                begun = time.process_time()
                for hashes in ready:
                    call(hashes)
                spent += time.process_time() - begun
            took.append(spent / len(batch) * 1e6)
        return statistics.median(took)


def measure(size: int, rounds: int) -> Numbers:
    """All figures of one size."""
    case, found = Case(rounds), Numbers()
    before, index = psutil.Process().memory_info().rss, PrefixIndex()
    lone: list[Blocks] = []
    took, worst = 0.0, 0.0
    for executor in range(EXECUTORS):
        blocks = case.blocks(size // EXECUTORS)
        lone += [blocks[:CHAIN].copy()] if executor % 2 == 0 and len(blocks) >= CHAIN else []
        state = CacheState(INFO, blocks.tolist())
        begun = time.process_time()
        index.snapshot(name(executor), "p", state)
        took += (once := time.process_time() - begun)
        worst = max(worst, once)
    del state
    gc.collect()
    found["restart, s per million blocks"] = took / size * 1e6
    found["restart, worst snapshot, ms"] = worst * 1e3
    found["bytes per block, RSS"] = (psutil.Process().memory_info().rss - before - CHAIN * 8 * len(lone)) / size
    found["bytes per block, computed"] = index.memory_bytes / size
    if not lone:
        lone = case.chains(50, CHAIN)
        stored(index, 1, np.concatenate(lone).tolist())
    few, every = case.chains(50, CHAIN), case.chains(8, CHAIN)
    for executor in range(EXECUTORS):
        stored(index, executor, np.concatenate(every + few if executor % 100 == 0 else every).tolist())
    for holders, chains in ((1, lone), (10, few), (EXECUTORS, every)):
        found |= lookups(index, case, holders, chains)
    found["lookup of 512 blocks, miss, µs"] = case.us(partial(index.match, "p"), case.chains(200, CHAIN))
    found |= events(index, case)
    found |= questions(index, case, [chain[:64] for chain in every])
    found |= reports(index, case)
    found |= growth(index, case)
    found["snapshot of 10,000 blocks, executor known, ms"] = (
        case.us(lambda blocks: index.snapshot("again", "p", CacheState(INFO, blocks)), case.chains(8, 10_000)) / 1e3
    )
    found["forget, µs"] = case.us(lambda some: index.forget(name(some[0])), _numbers(rounds), once=True)
    return found


def stored(index: PrefixIndex, executor: int, hashes: Hashes) -> None:
    """One event, as the manager gives them."""
    index.apply(name(executor), "p", (BlockEvent("stored", hashes),))


def removed(index: PrefixIndex, executor: int, hashes: Hashes) -> None:
    """Likewise."""
    index.apply(name(executor), "p", (BlockEvent("removed", hashes),))


def _numbers(count: int) -> list[Blocks]:
    """What a call gets that is not about blocks: one number each."""
    return [np.array([number], np.uint64) for number in range(2, 2 + count)]


def lookups(index: PrefixIndex, case: Case, holders: int, chains: Sequence[Blocks]) -> Numbers:
    """Chains that so many executors hold."""
    found = Numbers()
    for length in (8, 64, CHAIN):
        whole = [chain[:length] for chain in chains]
        half = [np.concatenate((chain[: length // 2], case.blocks(length - length // 2))) for chain in chains]
        if len(index.match("p", whole[0].tolist())) != holders:
            raise SystemExit(f"a chain does not have {holders} holders")
        for what, some in (("", whole), (", half hit", half)):
            title = f"lookup of {length} blocks, {holders} holder{'s' * (holders > 1)}{what}, µs"
            found[title] = case.us(partial(index.match, "p"), some)
    return found


def events(index: PrefixIndex, case: Case) -> Numbers:
    """Changes per second, by blocks in an event: new blocks, blocks that another has, and both taken away again."""
    found = Numbers()
    for length in (1, 8, 24, 512):
        chains = case.chains(max(60_000 // length, 100), length)
        steps = (("stored, new", 2, stored), ("stored, known", 3, stored),
                 ("removed, still known", 2, removed), ("removed, last", 3, removed))  # fmt: skip
        for what, executor, change in steps:
            us = case.us(partial(change, index, executor), chains, once=True)
            found[f"{what}, {length} in an event, blocks/s"] = length / us * 1e6
    return found


def questions(index: PrefixIndex, case: Case, chains: Sequence[Blocks]) -> Numbers:
    """What the manager takes for a question over chains that all executors hold: also when some are distrusted."""
    found, memory = Numbers(), Memory(index, Ledger(), Reports())
    ask = partial(memory.ask, "b")
    for doubted in (0, 1, EXECUTORS // 10):
        for executor in range(doubted):
            for _ in range(COMPARISONS):
                memory.trust.promise("b", 1, "p", PrefixMatch(name(executor), 64), 65)
                memory.release("b", 1, 0)
        title = f"question of 64 blocks, {EXECUTORS} holders, {doubted} of them distrusted, µs"
        found[title] = case.us(lambda hashes: ask(Question(1, "p", hashes, name(EXECUTORS - 1))), chains)
    return found


def reports(index: PrefixIndex, case: Case) -> Numbers:
    """Messages of a full cache as the manager takes them in, from their bytes on: blocks of one work go, as many of
    another come, ten times over."""
    upkeep = Upkeep(Memory(index, Ledger(), Reports()), ManualClock(), Observer())
    reporting = Reporting(cast(Any, None), upkeep, ManualClock(), Turns(TURN_BLOCKS))
    state = CacheState(INFO, case.blocks(1000).tolist())
    snapshot = pb.Snapshot(sequence=1, pools=[cache_to_proto(state)])
    finish(reporting.take(pb.ReportRequest(executor="reporting", snapshot=snapshot)))
    took: list[float] = []
    chains = [case.chains(10, 24) for _ in range(1 + 100 * case.rounds)]
    messages = [report(*pair).SerializeToString() for pair in enumerate(pairwise(chains), 2)]
    for start in range(0, len(messages), 100):
        begun = time.process_time()
        for message in messages[start : start + 100]:
            finish(reporting.take(pb.ReportRequest.FromString(message)))
        took.append((time.process_time() - begun) / 100)
    if index.size("reporting", "p") != 1240:
        raise SystemExit("the manager has not taken the reports in")
    return {"reports of 20 events of 24, blocks/s": 480 / statistics.median(took)}


def report(sequence: int, chains: tuple[list[Blocks], list[Blocks]]) -> pb.ReportRequest:
    """Old chains go, new ones come, by turns."""
    request = pb.ReportRequest(executor="reporting", events=pb.BlockEvents(sequence=sequence))
    for old, new in zip(*chains, strict=True):
        for event in (BlockEvent("removed", old.tolist()), BlockEvent("stored", new.tolist())):
            request.events.events.append(event_to_proto("p", event))
    return request


def finish(coroutine: Coroutine[Any, Any, object]) -> None:
    """Runs what waits for nobody but others' turns, without an event loop."""
    with suppress(StopIteration):
        while True:
            coroutine.send(None)


def growth(index: PrefixIndex, case: Case) -> Numbers:
    """Events of 24 blocks until the table has grown once more: how long the longest took, and all of them."""
    took: list[float] = []
    before = index.memory_bytes
    while index.memory_bytes < 1.6 * before and len(took) < 400_000:
        for chain in case.chains(100, 24):
            hashes = chain.tolist()
            begun = time.process_time()
            stored(index, 100 + len(took) % 800, hashes)
            took.append(time.process_time() - begun)
    return {"growing, worst event of 24 blocks, ms": max(took) * 1e3, "growing, blocks/s": 24 * len(took) / sum(took)}


def scattered(blocks: int, rounds: int) -> Numbers:
    """The worst that can be: every block has three holders of its own, so there are as many sets as blocks."""
    case, index = Case(rounds), PrefixIndex()
    chain, chance = case.blocks(blocks), np.random.default_rng(8)
    gc.collect()
    before = psutil.Process().memory_info().rss
    held, begun = 0, time.process_time()
    for executor in range(EXECUTORS):
        some: list[int] = chain[chance.random(blocks) < 3 / EXECUTORS].tolist()
        stored(index, executor, some)
        held += len(some)
    found = {"stored, µs per block": (time.process_time() - begun) / held * 1e6}
    found["bytes per block held, RSS"] = (psutil.Process().memory_info().rss - before) / held
    found["forget, ms"] = case.us(lambda some: index.forget(name(some[0])), _numbers(rounds), once=True) / 1e3
    return found


def measure_design(title: str, holders: int, rounds: int) -> Numbers:
    """The same few figures of any design: so many blocks, each on so many executors, per chain."""
    case, found = Case(rounds), Numbers()
    count = DESIGN_BLOCKS // holders // CHAIN
    chains = case.chains(count, CHAIN)
    gc.collect()
    before, design = psutil.Process().memory_info().rss, DESIGNS[title]()
    took = 0.0
    for executor in range(DESIGN_EXECUTORS):
        first, last = (count * (executor + step) // DESIGN_EXECUTORS for step in (0, holders))
        hashes = np.concatenate([chains[number % count] for number in range(first, last)]).tolist()
        begun = time.process_time()
        design.store(executor, hashes)
        took += time.process_time() - begun
    del hashes
    gc.collect()
    found["restart, s per million blocks"] = took / DESIGN_BLOCKS * 1e6
    found["bytes per block held, RSS"] = (psutil.Process().memory_info().rss - before) / DESIGN_BLOCKS
    found["lookup of 512 blocks, µs"] = case.us(design.match, chains)
    found["lookup, miss, µs"] = case.us(design.match, case.chains(100, CHAIN))
    fresh = case.chains(500, 24)
    spent = case.us(partial(design.store, 1), fresh, once=True) + case.us(partial(design.remove, 1), fresh, once=True)
    found["events of 24, blocks/s"] = 48 / spent * 1e6
    found["forget, ms"] = case.us(lambda some: design.forget(some[0]), _numbers(rounds), once=True) / 1e3
    return found


def apart(rounds: int, *case: object) -> Numbers:
    """Measures in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.kv_index", "--rounds", str(rounds), "--case", *map(str, case)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Numbers = json.loads(said)
    return found


def show(title: str, columns: Sequence[str], results: Sequence[Numbers]) -> Table:
    """One line for each figure, one column for each result."""
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for line in results[0]:
        table.add_row(line, *(_figure(one[line]) for one in results))
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="blocks")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.case:
        setup_logs("bench", "kv_index", "warning")
        what, number = arguments.case
        kinds = {"size": measure, "scattered": scattered}
        kind = kinds.get(what, partial(measure_design, what))
        print(json.dumps(kind(int(number), arguments.rounds)))
        return
    console = Console(width=170)
    load = psutil.getloadavg()[0]
    sizes = {size: apart(arguments.rounds, "size", size) for size in arguments.sizes}
    console.print(show("The prefix index", [f"{size:,} blocks" for size in sizes], list(sizes.values())))
    worst = apart(arguments.rounds, "scattered", SCATTERED)
    console.print(show("Every block with holders of its own", [f"{SCATTERED:,} blocks"], [worst]))
    designs: dict[int, dict[str, Numbers]] = {}
    for holders in DESIGN_HOLDERS:
        designs[holders] = {title: apart(arguments.rounds, title, holders) for title in DESIGNS}
        title = f"Designs: {DESIGN_BLOCKS:,} blocks on {DESIGN_EXECUTORS} executors, {holders} holders of each"
        console.print(show(title, list(designs[holders]), list(designs[holders].values())))
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}, NumPy {np.__version__}, load average {load:.1f}"
    console.print(machine)
    if arguments.out:
        said = {"machine": machine, "rounds": arguments.rounds, "executors": EXECUTORS, "sizes": sizes,
                "scattered": worst, "designs": designs}  # fmt: skip
        arguments.out.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
