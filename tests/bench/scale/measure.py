"""One run of one point: CPU by service, what came, and what it had to share the machine with."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.inference.v1 import inference_pb2 as pb
from tests.bench.overload import busy_s
from tests.bench.peers.native import program
from tests.bench.peers.phases import MARK
from tests.bench.peers.processes import cpu_s, on_core
from tests.bench.scale.points import Point
from tests.bench.scale.stand import SERVING, Stand

IDLE_S = 3.0
WARM_S, STARTS_PER_S = 4.0, 200.0
"""Before what counts: the more begin at once, the longer it takes."""
PROMPT = f"Request {MARK}: " + "water " * 20
KEEPS_UP = 0.95
"""Of the tokens that the engines offer."""


@dataclass(frozen=True, slots=True)
class Run:
    """Of one point. CPU is in cores, by service; memory in MB."""

    axis: str
    value: int
    round: int
    executors: int
    flight: int
    offered: float
    step_s: float
    tokens_per_s: float
    requests_per_s: float
    failed: int
    cores: dict[str, float]
    memory_mb: dict[str, float]
    first_p50_ms: float
    client_cores: float
    foreign: float
    """Cores that anything else used, or the host took away."""

    @property
    def keeps_up(self) -> bool:
        """Whether the mesh passed on what the engines gave."""
        return self.tokens_per_s >= KEEPS_UP * self.offered


@dataclass(frozen=True, slots=True)
class Idle:
    """A mesh that nobody asks anything."""

    round: int
    executors: int
    instances: int
    cores: dict[str, float]
    memory_mb: dict[str, float]


def idle(stand: Stand, executors: int, round_number: int) -> Idle:
    """Over IDLE_S."""
    groups = stand.groups()
    before, begin = {name: cpu_s(pids) for name, pids in groups.items()}, time.monotonic()
    time.sleep(IDLE_S)
    seconds = time.monotonic() - begin
    cores = {name: (cpu_s(pids) - before[name]) / seconds for name, pids in groups.items()}
    return Idle(round_number, executors, stand.instances, cores, stand.memory_mb())


def measure(stand: Stand, point: Point, step_s: float, window_s: float, round_number: int) -> Run:
    """Raises RuntimeError when a load generator fails."""
    groups = stand.groups()
    found = (
        _by_tenants(stand, point, window_s, groups) if point.tenants else _by_session(stand, point, window_s, groups)
    )
    memory = stand.memory_mb()
    stand.settle()
    return Run(
        point.axis, point.value, round_number, point.executors, point.flight, point.offered, step_s, memory_mb=memory,
        **found,
    )  # fmt: skip


def _by_session(stand: Stand, point: Point, window_s: float, groups: dict[str, list[int]]) -> dict[str, Any]:
    """A generator, and a Session, for each admission. The first reads the clocks of the mesh's processes."""
    body = stand.folder / "request.bin"
    form = pb.OUTPUT_FORM_TOKEN_IDS
    body.write_bytes(pb.GenerateRequest(model=point.model, prompt=PROMPT, output_form=form).SerializeToString())
    warm_s = WARM_S + point.flight / STARTS_PER_S
    words = [
        str(program("grpc_load")), "--path", "/headrace.inference.v1.InferenceService/Session", "--session", "1",
        "--body", str(body), "--key", stand.key, "--flight", str(point.flight // len(stand.ports)),
        "--tokens", str(point.tokens), "--warm", str(warm_s), "--window", str(window_s),
    ]  # fmt: skip
    charged = [*SERVING, "engine"]  # the generator takes up to 128 processes
    pids = ",".join(str(pid) for name in charged for pid in groups[name])
    with on_core(stand.cores.load):
        generators = [
            subprocess.Popen(
                [*words, "--port", str(port), "--pids", pids if port == stand.ports[0] else ""],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for port in stand.ports
        ]  # fmt: skip
    answers = [generator.communicate(timeout=warm_s + window_s + 30) for generator in generators]
    for generator, (_, error) in zip(generators, answers, strict=True):
        if generator.returncode:
            raise RuntimeError(f"{point.axis} {point.value}: {error.strip()}")
    said = [json.loads(out) for out, _ in answers]
    seconds = said[0]["seconds"]
    cores = {name: sum(said[0]["cpu_s"][str(pid)] for pid in groups[name]) / seconds for name in charged}
    client = sum(each["client_cpu_s"] / each["seconds"] for each in said)
    busy = (said[0]["busy_s"] + said[0]["stolen_s"]) / seconds
    return {
        "tokens_per_s": sum(each["tokens"] / each["seconds"] for each in said),
        "requests_per_s": sum(each["done"] / each["seconds"] for each in said),
        "failed": sum(each["failed"] for each in said), "cores": cores,
        "first_p50_ms": said[0]["first_us"]["p50"] / 1000, "client_cores": client,
        "foreign": max(busy - sum(cores.values()) - client, 0.0),
    }  # fmt: skip


def _by_tenants(stand: Stand, point: Point, window_s: float, groups: dict[str, list[int]]) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "tests.bench.scale.tenants", "--target", f"127.0.0.1:{stand.ports[0]}",
        "--model", point.model, "--flight", str(point.flight), "--tokens", str(point.tokens),
        "--tenants", str(point.tenants), "--seconds", str(window_s),
    ]  # fmt: skip
    with on_core(stand.cores.load):
        generator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert generator.stdout is not None
    looks: list[tuple[float, dict[str, float]]] = []
    for word in ("begin", "end"):
        if generator.stdout.readline().strip() != word:
            raise RuntimeError(f"{point.axis} {point.value}: the load generator failed")
        looks.append((busy_s(), {name: cpu_s(pids) for name, pids in groups.items()}))
    said = json.loads(generator.communicate()[0])
    seconds, client = said["seconds"], said["client_cpu_s"] / said["seconds"]
    (busy, before), (busy_then, after) = looks
    cores = {name: (after[name] - before[name]) / seconds for name in groups}
    return {
        "tokens_per_s": said["done"] * point.tokens / seconds, "requests_per_s": said["done"] / seconds,
        "failed": said["failed"], "cores": cores, "first_p50_ms": 0.0, "client_cores": client,
        "foreign": max((busy_then - busy) / seconds - sum(cores.values()) - client, 0.0),
    }  # fmt: skip
