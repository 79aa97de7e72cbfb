"""What the processes of a mesh say of themselves: their metrics, their memory, and how long they waited for a core."""

import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.system.mesh import Mesh

Buckets = tuple[tuple[float, float], ...]
"""Upper bound and count, not cumulative."""


def total(port: int, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels; 0 when there is none."""
    return sum(value for _, value in _samples(port, name, labels))


def buckets(port: int, name: str, **labels: str) -> Buckets:
    """A histogram, all its samples with these labels added up."""
    counts: dict[float, float] = {}
    for found, value in _samples(port, f"{name}_bucket", labels):
        bound = float(found["le"])
        counts[bound] = counts.get(bound, 0.0) + value
    below, parts = 0.0, []
    for bound in sorted(counts):
        parts.append((bound, counts[bound] - below))
        below = counts[bound]
    return tuple(parts)


def since(before: Buckets, after: Buckets) -> Buckets:
    """What was added between two looks."""
    known = dict(before)
    return tuple((bound, count - known.get(bound, 0.0)) for bound, count in after)


def quantile(histogram: Buckets, share: float) -> float:
    """Linear within a bucket, as Prometheus does; 0 without samples."""
    wanted, low = share * sum(count for _, count in histogram), 0.0
    for bound, count in histogram:
        if count and wanted <= count:
            return low if bound == float("inf") else low + (bound - low) * wanted / count
        wanted, low = wanted - count, bound
    return low


@dataclass(frozen=True, slots=True)
class Look:
    """The processes of a mesh at one moment."""

    rss_mb: Mapping[str, float]
    cpu_s: Mapping[str, float]
    """User and system, so far."""
    waited_s: Mapping[str, float]
    """Time in which the main thread could have run and had no core, so far."""


def look(mesh: Mesh, components: Iterable[str]) -> Look:
    """Reads /proc."""
    rss, cpu, waited = {}, {}, {}
    for name in components:
        process = psutil.Process(mesh.pid(name))
        times = process.cpu_times()
        rss[name] = process.memory_info().rss / 1e6
        cpu[name] = times.user + times.system
        waited[name] = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
    return Look(rss, cpu, waited)


def _samples(port: int, name: str, labels: Mapping[str, str]) -> list[tuple[Mapping[str, str], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        families = parse(response.read().decode())
    return [
        (sample.labels, sample.value)
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
