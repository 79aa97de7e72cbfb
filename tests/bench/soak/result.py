"""What a soak has seen so far, by window, and its verdict."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.soak import judge, mix
from tests.bench.soak.judge import Tolerance, Verdict
from tests.bench.soak.watch import Look, Process, kinds

PROCESS_SERIES = ("own_mb", "pss_mb", "rss_mb", "threads", "files", "tasks", "lag_ms", "cores")
MEMORY = Tolerance(0.05, 4.0)
"""Of what a process has asked for itself: the larger of 5 % and 4 MB over all that is judged."""
LATENCY = {"p50": Tolerance(0.25, 5.0), "p99": Tolerance(1.0, 50.0)}
CPU = Tolerance(0.2, 0.02)
"""Cores per process, at a rate that stays the same."""
TASKS = Tolerance(0.1, 8)
FILES = Tolerance(0.1, 6)
THREADS = Tolerance(0.0, 2)
DISTURBED = 0.15
"""Cores that others use."""
SLACK = {"files": 12, "threads": 2, "tasks": 6}
"""More at rest than at rest before: connections of neighbors, watches between two tries."""
Series = dict[str, list[float | None]]


@dataclass(slots=True)
class Result:
    """All of it, as it goes into the file."""

    machine: str
    seed: int
    minutes: float
    window_s: float
    sample_s: float
    peak_per_s: float = 0.0
    """Requests/s of the load that saturates."""
    rate_per_s: float = 0.0
    """Requests/s that were sent then."""
    interrupted: bool = False
    at_s: list[float] = field(default_factory=list)
    processes: dict[str, Series] = field(default_factory=dict)
    gauges: Series = field(default_factory=dict)
    load: Series = field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    rest: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """"before" and "after": each process at rest."""
    verdict: list[dict[str, Any]] = field(default_factory=list)

    def add(self, at_s: float, looks: Sequence[Look], said: Mapping[str, Any]) -> None:
        """A window: medians of its looks, the first of which is the last of the window before."""
        self.at_s.append(round(at_s, 1))
        count = len(self.at_s)
        seconds = max(looks[-1].at_s - looks[0].at_s, 0.001)
        for name in sorted({*self.processes, *looks[-1].processes}):
            seen = [each.processes[name] for each in looks if name in each.processes]
            of = self.processes.setdefault(name, {})
            for series in PROCESS_SERIES:
                _append(of, series, _cores(seen, seconds) if series == "cores" else _median(seen, series), count)
        for name in looks[-1].gauges:
            _append(self.gauges, name, statistics.median(each.gauges[name] for each in looks), count)
        busy = (looks[-1].busy_s - looks[0].busy_s) / seconds
        ours = sum(of["cores"][-1] or 0.0 for of in self.processes.values()) + said["series"]["client_cores"]
        machine = {"machine_cores": busy, "other_cores": max(busy - ours, 0.0), "disk_mb": looks[-1].disk_mb}
        for name, value in (dict(said["series"]) | machine).items():
            _append(self.load, name, value, count)
        self.count(said)
        for each in looks[1:]:
            self.wrong(*each.faults)

    def found(self, said: Mapping[str, Any]) -> None:
        """What the clients say while the load that saturates is looked for."""
        self.wrong(*(f"{count} of {kind}: {result}" for kind, results in said["outcomes"].items()
                     for result, count in results.items() if result not in mix.DOCUMENTED))  # fmt: skip
        if said["fault_count"]:
            self.fault_count += said["fault_count"]
            self.faults += said["faults"]

    def count(self, said: Mapping[str, Any]) -> None:
        """What the clients say of requests that ended."""
        for kind, results in said["outcomes"].items():
            of = self.outcomes.setdefault(kind, {})
            for result, count in results.items():
                of[result] = of.get(result, 0) + count
        self.fault_count += said["fault_count"]
        self.faults += said["faults"][: max(200 - len(self.faults), 0)]

    def wrong(self, *faults: str) -> None:
        """Something that no client tells."""
        self.fault_count += len(faults)
        self.faults += faults

    def at_rest(self, when: str, look: Look) -> None:
        """What each process holds while nothing is asked."""
        self.rest[when] = {
            name: {"pid": of.pid, "own_mb": round(of.own_mb, 2), "tasks": of.tasks or 0, "files": of.files,
                   "threads": of.threads, "kinds": kinds(of.pid)}
            for name, of in look.processes.items()
        }  # fmt: skip

    def judged(self) -> list[Verdict]:
        """Everything that must hold."""
        found = [
            *judge.ended_well(self.outcomes, mix.ALLOWED, mix.DOCUMENTED),
            Verdict("answers and processes are sound", not self.fault_count, f"{self.fault_count} faults"),
            Verdict("it went on to its end", not self.interrupted, f"{len(self.at_s)} windows"),
            judge.complete("all windows were looked at", self.at_s, 3 * self.window_s),
            self._alone(),
        ]
        for name, of in self.processes.items():
            found += [
                judge.flat(f"{name}: memory", self.at_s, of["own_mb"], MEMORY, "MB"),
                judge.flat(f"{name}: CPU", self.at_s, of["cores"], CPU, "cores"),
                judge.flat(f"{name}: files", self.at_s, of["files"], FILES),
                judge.flat(f"{name}: threads", self.at_s, of["threads"], THREADS),
            ]
            if any(of["tasks"]):
                found.append(judge.flat(f"{name}: tasks", self.at_s, of["tasks"], TASKS))
        for name, values in self.load.items():
            if name.endswith("_ms") and name.rpartition("_")[0][-3:] in LATENCY:
                share = name.rpartition("_")[0][-3:]
                found.append(judge.flat(name, self.at_s, values, LATENCY[share], "ms"))
        found += self._left()
        self.verdict = [{"what": each.what, "holds": each.holds, "said": each.said} for each in found]
        return found

    def _left(self) -> list[Verdict]:
        before, after = self.rest.get("before", {}), self.rest.get("after", {})
        if not before or not after:
            return [Verdict("nothing is left at rest", False, "it was not looked at")]
        found = []
        for name, was in before.items():
            now = after.get(name)
            same = now is not None and now["pid"] == was["pid"]
            if not same or now is None:
                found.append(Verdict(f"{name}: lives", False, "it died, or was started anew"))
                continue
            found += [
                judge.none_left(f"{name}: {what} at rest", was[what], now[what], slack) for what, slack in SLACK.items()
            ]
            more = Counter(now["kinds"]) - Counter(was["kinds"])
            found.append(
                Verdict(
                    f"{name}: files of each kind", max(more.values(), default=0) <= SLACK["files"], f"{dict(more)} more"
                )
            )
        return found

    def _alone(self) -> Verdict:
        """Holds always; says what latencies and refusals are worth."""
        others = [value for value in self.load.get("other_cores", []) if value is not None]
        used = statistics.median(others) if others else 0.0
        text = "disturbed: latencies and refusals say little" if used > DISTURBED else "nothing else ran"
        return Verdict("the machine was the mesh's", True, f"others used {used:.2f} cores: {text}")


def _median(seen: Sequence[Process], series: str) -> float | None:
    values = [value for each in seen if (value := getattr(each, series)) is not None]
    return statistics.median(values) if values else None


def _cores(seen: Sequence[Process], seconds: float) -> float | None:
    return (seen[-1].cpu_s - seen[0].cpu_s) / seconds if len(seen) > 1 and seen[0].pid == seen[-1].pid else None


def _append(series: Series, name: str, value: float | None, count: int) -> None:
    """Behind as many missing values as it takes."""
    values = series.setdefault(name, [])
    values += [None] * (count - 1 - len(values))
    values.append(None if value is None else round(value, 4))
