"""One run of one phase through one door: CPU by group of processes, latency, what else the machine did meanwhile."""

import json
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from tests.bench.peers.deaths import Death
from tests.bench.peers.phases import Phase
from tests.bench.peers.processes import cpu_s, memory_mb, on_core
from tests.bench.peers.systems.system import System

IDLE_S = 2.0
SETTLE_S, SETTLE_STEP_S = 10.0, 0.25
SETTLED = 0.1
"""Cores. A run ends in the middle of its requests, and some systems are busy for seconds with clients that left."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run. CPU seconds are those of the window."""

    system: str
    door: str
    phase: str
    round: int
    seconds: float
    done: int
    failed: int
    unsent: int
    """Arrivals of an open loop that found every place in use."""
    tokens: int
    merged: int
    """Of these: came in the same message or event as another."""
    cpu_us_per_token: float
    """Of the groups that are charged."""
    cpu_us_per_request: float
    cpu_s: dict[str, float]
    """By group."""
    first_us: dict[str, int]
    gap_us: dict[str, int]
    whole_us: dict[str, int]
    client_cpu_s: float
    foreign: float
    """Cores that anything else used in the window, or the host took away."""

    @property
    def requests_per_s(self) -> float:
        """Answered."""
        return self.done / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Received."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Idle:
    """A system that nobody asks anything."""

    system: str
    round: int
    memory_mb: dict[str, float]
    """By group (PSS)."""
    cores: dict[str, float]
    start_s: float


class RunFailed(RuntimeError):
    """The load generator did not get to its end; the text is what it said."""


def measure(system: System, name: str, door: str, phase: Phase, round_number: int, rate: float = 0.0) -> Result:
    """One run; `rate` (requests/s) is an open loop's. Raises RunFailed, and RuntimeError when the system ended."""
    _settle(system)
    groups = system.groups()
    pids = ",".join(str(pid) for members in groups.values() for pid in members)
    command = [
        *system.load(door, phase), "--flight", str(phase.flight), "--tokens", str(phase.tokens), "--rate", str(rate),
        "--warm", str(phase.warm_s), "--window", str(phase.window_s), "--pids", pids,
    ]  # fmt: skip
    with on_core(system.cores.load):
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=phase.warm_s + phase.window_s + 20)
        except subprocess.TimeoutExpired as late:
            raise RunFailed(f"{name}, {door}, {phase.name}: no end") from late
    system.check()
    if ran.returncode:
        raise RunFailed(f"{name}, {door}, {phase.name}: {ran.stderr.strip()}")
    said = json.loads(ran.stdout)
    if not said["tokens"]:
        raise RunFailed(f"{name}, {door}, {phase.name}: no token came, {said['failed']} requests failed")
    cpu = {group: sum(said["cpu_s"][str(pid)] for pid in members) for group, members in groups.items()}
    charged = sum(cpu[group] for group in system.charged) * 1e6
    known = sum(cpu.values()) + said["client_cpu_s"]
    return Result(
        name, door, phase.name, round_number, said["seconds"], said["done"], said["failed"], said["unsent"],
        said["tokens"], said["merged"], charged / max(said["tokens"], 1), charged / max(said["done"], 1), cpu,
        said["first_us"], said["gap_us"], said["whole_us"], said["client_cpu_s"],
        max((said["busy_s"] - known + said["stolen_s"]) / said["seconds"], 0.0),
    )  # fmt: skip


def idle(system: System, name: str, round_number: int, start_s: float) -> Idle:
    """Memory, and CPU over IDLE_S."""
    before, begin = _cpu_s(system), time.monotonic()
    time.sleep(IDLE_S)
    after, seconds = _cpu_s(system), time.monotonic() - begin
    cores = {group: max(after[group] - before.get(group, 0.0), 0.0) / seconds for group in after}
    return Idle(name, round_number, {group: memory_mb(pids) for group, pids in system.groups().items()}, cores, start_s)


def _settle(system: System) -> None:
    pids = [pid for members in system.groups().values() for pid in members]
    end, used = time.monotonic() + SETTLE_S, float("inf")
    while used > SETTLED * SETTLE_STEP_S and time.monotonic() < end:
        before = cpu_s(pids)
        time.sleep(SETTLE_STEP_S)
        used = cpu_s(pids) - before


def _cpu_s(system: System) -> dict[str, float]:
    return {group: cpu_s(pids) for group, pids in system.groups().items()}


def scaled(phase: Phase, seconds: float | None) -> Phase:
    """With another window."""
    return phase if seconds is None else replace(phase, window_s=seconds)


def as_json(result: Result | Idle | Death) -> dict[str, Any]:
    """For the results' file, rounded to what is meant."""
    rounded: dict[str, Any] = json.loads(json.dumps(asdict(result)), parse_float=lambda text: round(float(text), 4))
    return rounded
