"""How long the KV-cache manager is blind after it was killed, and whether it answers meanwhile.

    python -m tests.bench.kv_restart [--executors 100] [--blocks 10000] [--rounds 3] [--out FILE.json]

A real etcd, a real manager, and in one further process all executors' reports, each over a connection of its own.
The manager is killed with SIGKILL and started again. Measured is the time from the first report that the new one
takes in (by its log) until ListCaches has every block; and beside it, the time that answers take, for a question
over 512 blocks every 5 ms, while it is rebuilt and when it is quiet. Fails when the median rebuild takes more than
2 s per million blocks.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import psutil
from grpc import aio
from rich.console import Console
from rich.table import Table

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs.kvcache.consult import BUDGET_S, Consultation
from libs.kvcache.manager import ManagerChoice
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.report import Reporter
from libs.kvcache.values import Answer, BlockEvent, CacheInfo, CacheState, Exactness, Question
from libs.registry.registry import Registry
from libs.rpc.channels import Channels
from libs.settings import Etcd
from libs.streams.client import Dialer
from libs.telemetry.logs import setup_logs
from tests.system.etcd import etcd
from tests.system.kvcache_process import ROOT, ManagerProcess

POOL = "model@1"
LIMIT_S = 2.0
"""For a million blocks; what the design asks for."""
EVERY_S = 0.005
PROMPT_BLOCKS = 512
QUIET_S = 2.0
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Waits:
    """How long answers took."""

    questions: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    late: int
    """Answers for which a batcher would not have waited."""


@dataclass(frozen=True, slots=True)
class Round:
    """Of one restart."""

    seconds: float
    """From the first report that was taken in."""
    seconds_from_kill: float
    """The start of the process and the way back to it included."""
    rebuilding: Waits
    quiet: Waits


def blocks_of(executor: int, count: int) -> list[int]:
    """What an executor holds, the same in every process."""
    chance = random.Random(executor)
    return [chance.getrandbits(64) for _ in range(count)]


class Asking:
    """A question every EVERY_S, whether or not the one before is answered, and how long each answer took."""

    def __init__(self, consultation: Consultation, prompts: Sequence[Sequence[int]]) -> None:
        self._consultation = consultation
        self._prompts = prompts
        self._number = 0
        self._waits: list[float] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stop.is_set():
            if self._consultation.up:
                self._number += 1
                question = Question(self._number, POOL, self._prompts[self._number % len(self._prompts)])
                self._consultation.ask(question, self._heard(time.perf_counter()))
            due = max(due + EVERY_S, loop.time())
            await asyncio.sleep(due - loop.time())

    def stop(self) -> None:
        """No more questions."""
        self._stop.set()

    def forget(self) -> None:
        """Begins anew."""
        self._waits = []

    def take(self) -> Waits:
        """The waits since the last call."""
        waits, self._waits = sorted(self._waits), []
        if len(waits) < 2:
            raise SystemExit("nothing was answered")
        return Waits(
            questions=len(waits),
            p50_ms=round(statistics.median(waits) * 1e3, 2),
            p99_ms=round(waits[int(0.99 * len(waits))] * 1e3, 2),
            worst_ms=round(waits[-1] * 1e3, 2),
            late=sum(wait > BUDGET_S for wait in waits),
        )

    def _heard(self, asked: float) -> Callable[[Answer | None], None]:
        def heard(answer: Answer | None) -> None:
            if answer is not None:
                self._waits.append(time.perf_counter() - asked)

        return heard


class Bench:
    """Everything but the manager's death."""

    def __init__(self, manager: ManagerProcess, etcd_endpoint: str, executors: int, blocks: int) -> None:
        self._manager = manager
        self._etcd = etcd_endpoint
        self._executors = executors
        self._blocks = blocks
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        channels = Channels()
        self._stack.push_async_callback(channels.close)
        channel = channels.connect(self._manager.endpoint)
        self._stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        command = [sys.executable, "-m", "tests.bench.kv_restart", "--report-to", self._etcd]
        command += ["--executors", str(self._executors), "--blocks", str(self._blocks)]
        reporters = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._stack.callback(reporters.wait)
        self._stack.callback(reporters.kill)
        consultation = Consultation("batcher-1", Dialer(), lambda: self._manager.endpoint, PATIENCE_S)
        self._stack.push_async_callback(consultation.close)
        chosen = random.Random(0).sample(range(self._executors), min(self._executors, 20))
        self._asking = Asking(consultation, [blocks_of(number, self._blocks)[:PROMPT_BLOCKS] for number in chosen])
        asking = asyncio.create_task(self._asking.run(), name="asking")
        self._stack.push_async_callback(asyncio.wait, [asking])
        self._stack.callback(self._asking.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def whole(self) -> float:
        """Waits until every block is there; returns when that was, Unix seconds."""
        wanted = self._executors * self._blocks
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(aio.AioRpcError):  # it was killed a moment ago, and the channel has not heard of that
                    answer = await self._stub.ListCaches(pb.ListCachesRequest(page_size=1000), wait_for_ready=True)
                    if sum(cache.indexed for cache in answer.caches) == wanted:
                        return time.time()
                await asyncio.sleep(0.02)

    async def restart(self) -> Round:
        """Kills the manager and measures its return."""
        self._manager.kill()
        killed = time.time()
        self._asking.forget()
        self._manager.start()
        whole = await self.whole()
        rebuilding = self._asking.take()
        await asyncio.sleep(1.0)
        self._asking.forget()
        await asyncio.sleep(QUIET_S)
        first = self._manager.first_report()
        return Round(round(whole - first, 3), round(whole - killed, 3), rebuilding, self._asking.take())


async def report(etcd_endpoint: str, executors: int, blocks: int) -> None:
    """The executors' process: reports until its standard input ends."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(Registry.from_settings(Etcd((etcd_endpoint,))))
        choice = ManagerChoice(registry)
        await choice.start()
        stack.push_async_callback(choice.close)
        for number in range(executors):
            mirror = CacheMirror(CacheInfo(POOL, 2 * blocks, 16, Exactness.EXACT))
            mirror.apply([BlockEvent("stored", blocks_of(number, blocks))])
            snapshot = partial(_snapshot, mirror)
            reporter = Reporter(f"e{number:04}", snapshot, Dialer(), choice.endpoint)
            stack.push_async_callback(reporter.close)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def _snapshot(mirror: CacheMirror) -> list[CacheState]:
    return [mirror.state()]


async def measure(executors: int, blocks: int, rounds: int) -> tuple[list[Round], int]:
    """Every round, and the manager's memory in MB."""
    async with etcd() as member:
        with tempfile.TemporaryDirectory() as folder:
            manager = ManagerProcess(Path(folder), member.endpoint)
            manager.start()
            try:
                async with Bench(manager, member.endpoint, executors, blocks) as bench:
                    await bench.whole()
                    results = [await bench.restart() for _ in range(rounds)]
                    return results, manager.memory_bytes // 10**6
            finally:
                manager.kill()


def table_of(results: Sequence[Round], title: str) -> Table:
    """A row for each round."""
    table = Table(title=title)
    for column in ("s", "s from kill", "p50", "p99", "worst (ms)", "late", "quiet p50", "p99", "worst (ms)"):
        table.add_column(column, justify="right")
    for one in results:
        busy, quiet = one.rebuilding, one.quiet
        figures = (one.seconds, one.seconds_from_kill, busy.p50_ms, busy.p99_ms, busy.worst_ms)
        late = f"{busy.late} of {busy.questions}"
        table.add_row(*map(str, figures), late, *map(str, (quiet.p50_ms, quiet.p99_ms, quiet.worst_ms)))
    return table


def main() -> None:
    """Entry point; exits with 1 when a rebuild takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=10_000, help="of each executor")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write every round as JSON")
    parser.add_argument("--report-to", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    setup_logs("bench", "kv_restart", "warning")
    if arguments.report_to:
        asyncio.run(report(arguments.report_to, arguments.executors, arguments.blocks))
        return
    results, memory_mb = asyncio.run(measure(arguments.executors, arguments.blocks, arguments.rounds))
    total = arguments.executors * arguments.blocks
    console = Console(width=130)
    console.print(table_of(results, f"Restart: {arguments.executors} executors with {arguments.blocks:,} blocks each"))
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}"
    console.print(f"{machine}; the manager takes {memory_mb} MB")
    if arguments.out:
        size = {"executors": arguments.executors, "blocks": arguments.blocks, "manager_memory_mb": memory_mb}
        rounds = [asdict(one) for one in results]
        arguments.out.write_text(json.dumps({"machine": machine, **size, "rounds": rounds}, indent=1) + "\n")
    per_million = statistics.median(one.seconds for one in results) / total * 1e6
    if per_million > LIMIT_S:
        raise SystemExit(f"a million blocks took {per_million:.2f} s")


if __name__ == "__main__":
    main()
