"""What every process of a mesh holds: memory, threads, files, tasks, CPU, and what its gauges say."""

import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from libs.telemetry import names
from tests.bench.peers.processes import cpu_s
from tests.system.fuzz_checks import AT_REST
from tests.system.mesh import Mesh

FOREIGN = ("etcd", "envoy")
GAUGES = (*(metric.name for metric in AT_REST), names.ROUTER_LANES.name)
"""Added up over all processes."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment. Memory in MB."""

    pid: int
    own_mb: float
    """Anonymous: what it has asked for itself."""
    pss_mb: float
    """Resident, pages that several share in equal parts."""
    rss_mb: float
    threads: int
    files: int
    cpu_s: float
    """Since its start."""
    tasks: float | None
    """Of asyncio; None for programs that are not ours."""
    lag_ms: float | None
    """The latest that its event loop woke in ten seconds."""


@dataclass(frozen=True, slots=True)
class Look:
    """The mesh at one moment."""

    at_s: float
    """Monotonic."""
    processes: Mapping[str, Process]
    gauges: Mapping[str, float]
    busy_s: float
    """That the machine's cores have worked, for whomever."""
    disk_mb: float
    """Logs, traces and etcd's data."""
    faults: list[str] = field(default_factory=list)


def look(mesh: Mesh) -> Look:
    """Takes some 100 ms. A process that is gone is a fault, and missing."""
    snapshot = mesh.snapshot()
    faults = [f"{part.name} does not run: {part.detail}" for part in snapshot.components if part.pid is None]
    processes: dict[str, Process] = {}
    gauges: dict[str, float] = dict.fromkeys(GAUGES, 0.0)
    for part in snapshot.components:
        if part.pid is None:
            continue
        try:
            said = {} if part.service in FOREIGN or part.metrics_port is None else dict(_page(part.metrics_port))
            for name in gauges.keys() & said.keys():
                gauges[name] += said[name]
            processes[part.name] = _process(part.pid, said)
        except (OSError, urllib.error.URLError) as error:
            faults.append(f"{part.name}: {error}")
    processes["supervisor"] = _process(snapshot.supervisor, {})
    return Look(time.monotonic(), processes, gauges, _busy_s(), _disk_mb(mesh.state_dir), faults)


def _process(pid: int, said: Mapping[str, float]) -> Process:
    own, pss, rss = _memory(pid)
    folder = Path(f"/proc/{pid}")
    threads, files = (len(os.listdir(folder / name)) for name in ("task", "fd"))
    tasks, lag_s = said.get(names.PROCESS_TASKS.name), said.get(names.PROCESS_LOOP_LAG.name)
    lag_ms = None if lag_s is None else lag_s * 1000
    return Process(pid, own, pss, rss, threads, files, cpu_s([pid]), tasks, lag_ms)


def _memory(pid: int) -> tuple[float, float, float]:
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024 / 1e6
    return found["Anonymous"], found["Pss"], found["Rss"]


def kinds(pid: int) -> dict[str, int]:
    """How many files of each kind it has open: sockets, pipes, and by name what lies on a disk, from the mesh's state
    folder on where it lies there."""
    found = Counter[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[re.sub(r"^/.*/(?=state/)|:?\[?\d+\]?$", "", os.readlink(descriptor))] += 1
    return dict(found)


def _page(port: int) -> dict[str, float]:
    """Every metric of a process, all labels added up."""
    found = defaultdict[str, float](float)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if not line.startswith("#"):
                found[line.partition("{")[0].partition(" ")[0]] += float(line.rpartition(" ")[2])
    return found


def _disk_mb(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # logs move on
            total += path.stat().st_blocks * 512
    return total / 1e6


def _busy_s() -> float:
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, soft = (int(each) for each in first[:7])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
