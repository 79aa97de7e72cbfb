"""What admission and the router add to a request, together: milliseconds and CPU.

    python -m tests.bench.front [--rounds 3] [--seconds 4] [--out FILE.json]

Real processes: etcd, admission, a router, a stub that answers at once (tests/bench/front_stub.py), a client. Each case
runs twice, through admission and router to the stub, and with the client at the stub alone; the difference is what they
add. Cases: 1 and 64 in flight (closed loop), and an open loop at half of the highest rate that they bear. CPU is that
of the processes of admission and router (user + system) per request.

Sixty-four that come at once share frames, writes and wake-ups; requests that come by chance do not. So the highest rate
is looked for with an open loop, which climbs until fewer are answered than are sent, or they begin to queue.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from libs.registry import EtcdClient, Registry, keys
from tests.bench.generator import driven
from tests.system.etcd import etcd, free_ports

KEY = "headrace-bench-key"
MODEL = registry_pb2.Model(
    name="stub", source="simulated:", engines=["simulated"], memory_bytes=1_000_000, context_tokens=8192, blocks=16384,
    block_tokens=32, slots=512, step_tokens=8192, replicas=1,
)  # fmt: skip
PROGRAMS = {
    "admission": "services.admission.main",
    "router": "services.router.main",
    "stub": "tests.bench.front_stub",
}
MEASURED = ("admission", "router")
PATHS = ("through", "alone")
PROBE_S = 2.0
STEP = 1.25
BORNE = 0.9
"""Of what is sent: what is answered while the rate is borne. Arrivals by chance vary by a few percent in PROBE_S."""
QUEUED_MS = 25.0
"""A median above this is that of a queue."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    door: str
    load: str
    """"1", "64" (in flight) or "half" (open loop)."""
    path: str


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run."""

    per_s: float
    errors: int
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]
    """Per request, by process."""


@dataclass(frozen=True, slots=True)
class Processes:
    """What runs."""

    pids: Mapping[str, int]
    targets: Mapping[str, str]
    """By path."""


async def fill(endpoint: str) -> None:
    """The rules, the catalogue, and an executor that says that it has the model."""
    spec = ModelSpec.from_proto(MODEL)
    copy = registry_pb2.ExecutorModel(
        model=MODEL.name, state=registry_pb2.MODEL_STATE_READY, pool=spec.pool, version=spec.version, slots=512,
        blocks=MODEL.blocks, block_tokens=MODEL.block_tokens,
    )  # fmt: skip
    tenant = policy_pb2.Tenant(name="bench", key_sha256=[hashlib.sha256(KEY.encode()).hexdigest()])
    executor = registry_pb2.Executor(instance="stub", endpoint="127.0.0.1:1", engine="simulated", models=[copy])
    async with Registry(EtcdClient([endpoint], None)) as registry:
        await registry.put_message(keys.model(MODEL.name), MODEL)
        await registry.put_message(keys.tenant("bench"), tenant)
        await registry.put_message(keys.executor("stub"), executor)


@contextmanager
def processes(endpoint: str, folder: Path) -> Iterator[Processes]:
    """Admission, router and stub, as `headrace up` would start them."""
    ports = dict(zip(PROGRAMS, free_ports(len(PROGRAMS)), strict=True))
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, module in PROGRAMS.items():
            environment = {
                **os.environ,
                "HEADRACE_INSTANCE": f"{name}-1",
                "HEADRACE_LISTEN": f"127.0.0.1:{ports[name]}",
                "HEADRACE_ETCD": endpoint,
                "HEADRACE_STATE_DIR": str(folder),
            }
            with (folder / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", module], env=environment, stdout=log, stderr=log
                )
        yield Processes(
            {name: process.pid for name, process in running.items()},
            {"through": f"127.0.0.1:{ports['admission']}", "alone": f"127.0.0.1:{ports['stub']}"},
        )
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(timeout=20)


def measure(there: Processes, case: Case, seconds: float, per_s: float = 0.0) -> Result:
    """One run of one case."""
    command = [
        sys.executable, "-m", "tests.bench.front_load", "--target", there.targets[case.path], "--key", KEY,
        "--door", case.door, "--seconds", str(seconds),
    ]  # fmt: skip
    command += ["--per-s", str(per_s)] if per_s else ["--flight", case.load]
    said, cpu_s = driven(command, there.pids)
    cpu_us = {name: seconds * 1e6 / max(said["requests"], 1) for name, seconds in cpu_s.items()}
    return Result(said["per_s"], said["errors"], said["p50_ms"], said["p99_ms"], cpu_us)


def ready(there: Processes) -> None:
    """Waits until a request is answered."""
    end = time.monotonic() + 30
    while True:
        result = measure(there, Case("generate", "1", "through"), 0.3)
        if not result.errors:
            return
        if time.monotonic() > end:
            raise SystemExit("admission and router answer no request")


def highest_rate(there: Processes, door: str, console: Console) -> float:
    """Requests per second, by chance, that admission and router bear; to within a step."""
    rate = measure(there, Case(door, "1", "through"), PROBE_S).per_s / 2
    best = rate
    while True:
        result = measure(there, Case(door, "half", "through"), PROBE_S, rate)
        console.print(f"{door} at {rate:.0f}/s: {result.per_s:.0f}/s answered, p99 {result.p99_ms:.1f} ms", style="dim")
        if result.per_s < BORNE * rate or result.p50_ms > QUEUED_MS:
            return best
        best, rate = rate, rate * STEP


def rounds(there: Processes, count: int, seconds: float, console: Console) -> dict[Case, list[Result]]:
    """Every case, so often, interleaved."""
    found: dict[Case, list[Result]] = defaultdict(list)
    highest = {door: highest_rate(there, door, console) for door in ("generate", "session")}
    for number in range(count):
        for door in ("generate", "session"):
            for load in ("1", "64", "half"):
                half = highest[door] / 2 if load == "half" else 0.0
                for path in PATHS:
                    case = Case(door, load, path)
                    result = measure(there, case, seconds, half)
                    found[case].append(result)
                    console.print(f"round {number + 1}: {case}: {result}", style="dim")
    return found


def summary(found: Mapping[Case, Sequence[Result]]) -> list[dict[str, object]]:
    """Medians over the rounds, and what is added: the median of the rounds' differences."""
    rows: list[dict[str, object]] = []
    for case, runs in found.items():
        if case.path != "through":
            continue
        alone = found[Case(case.door, case.load, "alone")]
        pairs = list(zip(runs, alone, strict=True))
        row: dict[str, object] = {"door": case.door, "load": case.load, "errors": sum(run.errors for run in runs)}
        row["per_s"] = round(statistics.median(run.per_s for run in runs))
        row["per_s_alone"] = round(statistics.median(run.per_s for run in alone))
        for name in ("p50_ms", "p99_ms"):
            row[name] = round(statistics.median(getattr(run, name) for run in runs), 3)
            row[f"{name}_alone"] = round(statistics.median(getattr(run, name) for run in alone), 3)
            row[f"added_{name}"] = round(statistics.median(getattr(a, name) - getattr(b, name) for a, b in pairs), 3)
        for process in MEASURED:
            row[f"cpu_us_{process}"] = round(statistics.median(run.cpu_us[process] for run in runs))
        rows.append(row)
    return rows


def report(rows: Sequence[Mapping[str, object]]) -> Table:
    """The summary as a table."""
    table = Table(title="What admission and router add, medians")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


async def run(arguments: argparse.Namespace, console: Console) -> dict[Case, list[Result]]:
    """Starts everything, measures."""
    with tempfile.TemporaryDirectory() as folder:
        async with etcd() as member:
            await fill(member.endpoint)
            with processes(member.endpoint, Path(folder)) as there:
                await asyncio.to_thread(ready, there)
                return await asyncio.to_thread(rounds, there, arguments.rounds, arguments.seconds, console)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="also write every run as JSON")
    arguments = parser.parse_args()
    console = Console(width=200)
    found = asyncio.run(run(arguments, console))
    rows = summary(found)
    console.print(report(rows))
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    load = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    machine = f"{cores}, Python {platform.python_version()}, load average {load}"
    console.print(f"{machine}; {arguments.rounds} rounds of {arguments.seconds} s")
    if arguments.out:
        runs = [{**asdict(case), "runs": [asdict(run) for run in runs]} for case, runs in found.items()]
        arguments.out.write_text(json.dumps({"machine": machine, "summary": rows, "cases": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
