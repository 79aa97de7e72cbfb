"""The mesh when nothing is asked of it: what is busy nevertheless, what its processes hold, what their logs tell."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from headrace.operations.v1 import operations_pb2 as ops
from libs.registry import keys
from libs.telemetry import names
from services.console.mesh.plan import DOORS
from tests.system.chaos import questions
from tests.system.chaos.cluster import Cluster, Process
from tests.system.chaos.history import Rest, TenantUsage
from tests.system.client import connect
from tests.system.fuzz_checks import AT_REST, IDLE_S

NEVER = (names.KVCACHE_FAULTS,)
"""Zero always: books that did not add up."""
LATE_S = 12.0
"""A rest that takes longer than this is told: a batcher's reservations lapse 10 s after its last word."""
FRAMES = 6
"""Of a traceback, as many of our own are told."""


async def idle(cluster: Cluster, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Returns when nothing is in flight, queued or reserved, and empty; or after IDLE_S, with what is."""
    began, late, busy = time.monotonic(), False, list[str]()
    while True:
        if not late and time.monotonic() > began + LATE_S:
            late = True
            say(f"  not at rest after {LATE_S:g} s: {busy}")
        whole = {names.PROCESS_ETCD.name: 1.0, names.ROUTER_LANES.name: float(cluster.batchers)}  # once all is back
        pages = await asyncio.gather(*(asyncio.to_thread(_busy, one, whole) for one in cluster.processes.values()))
        busy = [line for page in pages for line in page] + await _absent(cluster)
        if not busy or time.monotonic() > began + IDLE_S:
            return busy
        await asyncio.sleep(0.3)


def _busy(process: Process, whole: Mapping[str, float]) -> list[str]:
    wanted = {metric.name: 0.0 for metric in (*AT_REST, *NEVER)} | whole
    try:
        lines = process.metrics().splitlines()
    except OSError as error:
        return [f"{process.name} has no metrics: {error}"]
    found = []
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in wanted and float(line.split()[-1]) != wanted[name]:
            found.append(f"{process.name}: {line}")
    return found


async def _absent(cluster: Cluster) -> list[str]:
    """Processes that etcd does not know, and others that it knows."""
    known: set[str] = set()
    for prefix in (keys.SERVICES, keys.EXECUTORS):
        _, entries = await cluster.registry.client.get_prefix(prefix)
        known |= {entry.key.rpartition("/")[2] for entry in entries}
    return [f"etcd does not know {name}, or knows it though it is not there" for name in known ^ set(cluster.processes)]


async def look(cluster: Cluster) -> dict[str, Rest]:
    """Every process as it is now."""
    return {name: await _look(process) for name, process in cluster.processes.items()}


async def _look(process: Process) -> Rest:
    tasks = await process.tasks()
    seen = process.seen()
    pages = dict(await _pages(process)) if process.service in DOORS else {}
    return Rest(process.life, seen.memory_info().rss, seen.num_fds(), sum(tasks.values()), pages)


async def _pages(process: Process) -> list[tuple[str, TenantUsage]]:
    async with connect(process.endpoint, questions.OPERATOR_KEY) as client:
        request = ops.ListUsageRequest(page_size=100)
        found = await client.operations.ListUsage(request, metadata=client.metadata, timeout=20)
    return [
        (one.tenant, TenantUsage(one.requests, one.prompt_tokens, one.output_tokens, one.running))
        for one in found.usages
    ]


class Logs:
    """The logs of all processes, each line looked at once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._read: dict[str, int] = {}

    def traces(self) -> list[str]:
        """Tracebacks since the last call: each once, with how often."""
        seen = Counter(found for process in self._cluster.processes.values() for found in self._traces(process))
        return [f"{count} times in the log of {name}:\n{trace}" for (name, trace), count in seen.most_common()]

    def _traces(self, process: Process) -> Iterator[tuple[str, str]]:
        path = process.folder / f"{process.name}.log"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read.get(process.name, 0))
            text = file.read()
            self._read[process.name] = file.tell()
        for part in re.split(r"\n(?=\{)", text.decode(errors="replace")):
            if "Traceback" in part:
                yield process.name, _short(part)


def _short(part: str) -> str:
    try:
        line = json.loads(part.splitlines()[0])
        trace = f"{line.get('event', '')}\n{line.get('exception', part)}"
    except ValueError:
        trace = part
    lines = trace.splitlines()
    own = [each.strip() for each in lines if each.startswith('  File "') and "site-packages" not in each]
    return "\n".join([lines[0][:200], *own[-FRAMES:], lines[-1][:300]])
