"""What shots left behind: processes, memory, open files, works."""

import asyncio
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psutil

from libs.telemetry import names
from tests.system.mesh import Mesh

IDLE_S = 20.0
"""Within as long after the last shot nothing is in flight any more."""
MEMORY_GROWTH = 0.15
MEMORY_SLACK = 8_000_000
"""Bytes: of a process of 60 MB, 15 % is what an allocator keeps by chance."""
FILES_SLACK = 12
EXPECTED = ("tokenizer failed to load",)
"""Told with their traces, and no bugs: a model of the catalogue that has no such files."""
TRACE_FRAMES = 4
AT_REST = (
    names.ADMISSION_RUNNING, names.ADMISSION_SESSIONS, names.ADMISSION_CONVERSATIONS, names.ROUTER_RUNNING,
    names.BATCHER_WAITING, names.BATCHER_WAITING_TOKENS, names.BATCHER_RUNNING, names.KVCACHE_RESERVED,
    names.EXECUTOR_RUNNING, names.EXECUTOR_WAITING, names.EXECUTOR_USED_BLOCKS,
)  # fmt: skip
"""All zero while nobody asks for anything."""


@dataclass(frozen=True, slots=True)
class Process:
    """What one process has."""

    pid: int
    restarts: int
    resident: int
    """Bytes."""
    files: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """The mesh's processes, at one moment."""

    processes: Mapping[str, Process]

    @classmethod
    def of(cls, mesh: Mesh) -> Self:
        """As they are now."""
        found = {}
        for component in mesh.snapshot().components:
            assert component.pid is not None, f"{component} does not run"
            process = psutil.Process(component.pid)
            resident = process.memory_info().rss
            found[component.name] = Process(component.pid, component.restarts, resident, process.num_fds())
        return cls(found)


def leaks(before: Footprint, after: Footprint, mesh: Mesh) -> list[str]:
    """What is not as it was; the mesh's own stages only, as etcd's memory is etcd's."""
    found = []
    for name, was in before.processes.items():
        now = after.processes[name]
        if now.pid != was.pid or now.restarts:
            found.append(f"{name} died: process {was.pid} became {now.pid}, {now.restarts} restarts")
        elif mesh.snapshot().component(name).metrics_port is None:
            continue
        if now.resident > was.resident * (1 + MEMORY_GROWTH) + MEMORY_SLACK:
            found.append(f"{name} grew from {was.resident / 1e6:.0f} to {now.resident / 1e6:.0f} MB")
        if now.files > was.files + FILES_SLACK:
            found.append(f"{name} had {was.files} files open, and has {now.files}")
    return found


async def idle(mesh: Mesh) -> None:
    """Returns when nothing is in flight, queued or reserved. Raises AssertionError with what is."""
    end = time.monotonic() + IDLE_S
    while left := await asyncio.to_thread(_busy, mesh):
        assert time.monotonic() < end, f"after {IDLE_S:g} s without a request: {left}"
        await asyncio.sleep(0.2)


def _busy(mesh: Mesh) -> list[str]:
    wanted = tuple(metric.name for metric in AT_REST)
    found = []
    for component in mesh.snapshot().components:
        if component.metrics_port is None or component.service in ("etcd", "envoy"):
            continue
        with urllib.request.urlopen(f"http://127.0.0.1:{component.metrics_port}/metrics", timeout=5) as page:
            for line in page.read().decode().splitlines():
                busy = line.startswith(wanted) and float(line.rpartition(" ")[2]) != 0
                found += [f"{component.name}: {line}"] * busy
    return found


def bugs(mesh: Mesh) -> list[str]:
    """What the stages' logs say went wrong inside: each trace once, with how often."""
    seen = Counter[tuple[str, str]]()
    for component in mesh.snapshot().components:
        if component.metrics_port is None:
            continue
        for file in mesh.state_dir.glob(f"logs/{component.name}.log*"):
            for line in file.read_text(errors="replace").splitlines():
                if "Traceback" in line and not any(each in line for each in EXPECTED):
                    seen[component.name, _last_frames(line)] += 1
    return [f"{count} times in the log of {name}:\n{trace}" for (name, trace), count in seen.most_common()]


def _last_frames(line: str) -> str:
    try:
        trace = str(json.loads(line).get("exception", line))
    except ValueError:
        trace = line
    lines = trace.splitlines()
    own = [line.strip() for line in lines if line.startswith('  File "') and "site-packages" not in line]
    return "\n".join([*own[-TRACE_FRAMES:], lines[-1][:300]])
