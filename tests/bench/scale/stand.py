"""The mesh that is measured: its services on one core, executors, etcd and load generators on another."""

import os
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from services.console.mesh.parts import ROOT
from tests.bench.peers.processes import Cores, cpu_s, family, memory_mb, move, on_core
from tests.bench.scale.points import AXES, STEP_S
from tests.system.mesh import Mesh

SERVING = ("admission", "router", "batcher", "kvcache")
"""What is charged."""
LARGEST_HOST = 16
"""Executors of one process."""
READY_S = 90.0
SETTLED, SETTLE_S, SETTLE_STEP_S = 0.1, 15.0, 0.25
"""Cores that a mesh may still use after a load has gone, and how long that is waited for."""
TIERS = {
    "interactive": {
        "tier": "TIER_INTERACTIVE", "default_timeout": "300s", "max_timeout": "600s", "max_waiting": 16_384,
        "max_waiting_tokens": 16_777_216, "target_first_token": "60s",
    },
}  # fmt: skip
"""Nobody is refused: refusing is cheap."""
MODEL = {
    "source": "simulated:", "engines": ["simulated"], "replicas": 0, "memory_bytes": 1_000_000, "context_tokens": 4096,
    "blocks": 16_384, "block_tokens": 32, "slots": 2048, "step_tokens": 16_384, "capabilities": ["chat", "log_probs"],
}  # fmt: skip


def key(tenant: int) -> str:
    """The key of tenant number so-and-so."""
    return f"headrace-scale-{tenant}"


class Stand:
    """Up within the `with` block.

    Args:
        instances: Of admission, router and batcher, each. No Envoy: each admission has its own load.
    """

    def __init__(self, cores: Cores, instances: int) -> None:
        self.cores = cores
        self.instances = instances
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-scale-")
        self.folder = Path(self._folder.name)
        self._hosts: list[tuple[subprocess.Popen[bytes], int]] = []
        _write_policy(self.folder / "policy")
        self._mesh = Mesh(
            admissions=instances, routers=instances, batchers=instances, envoy=False,
            extra_policy=self.folder / "policy", env={"HEADRACE_TRACE_RATIO": "0"},
        )  # fmt: skip

    def __enter__(self) -> Self:
        with on_core(self.cores.system):
            self._mesh.__enter__()
        for name, pids in self.groups().items():
            if name not in SERVING:
                move(pids, self.cores.load)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hosts:
            self._end_host()
        self._mesh.__exit__(kind, error, trace)
        self._folder.cleanup()

    def executors(self, count: int) -> None:
        """Has so many, ready. Raises AssertionError when they do not come, or go. The next number must be one that was
        there before, or a larger one."""
        snapshot = self._mesh.snapshot()
        while self._count > count:
            self._end_host()
        while self._count < count:
            size = min(count - self._count, LARGEST_HOST)
            words = [
                sys.executable,
                "-m",
                "tests.bench.scale.executors",
                snapshot.etcd,
                str(self._count + 1),
                str(size),
            ]
            with on_core(self.cores.load), (self.folder / "executors.log").open("ab") as log:
                host = subprocess.Popen(
                    [*words, str(self.folder)], cwd=ROOT, stdout=log, stderr=log,
                    env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"},
                )  # fmt: skip
            self._hosts.append((host, size))
        end = time.monotonic() + READY_S
        while (ready := self._ready()) != count:
            assert time.monotonic() < end, f"{ready} of {count} executors are ready after {READY_S:g} s"
            time.sleep(0.2)
        self.settle()

    def _end_host(self) -> None:
        host, _ = self._hosts.pop()
        host.terminate()
        host.wait()

    @property
    def _count(self) -> int:
        return 1 + sum(size for _, size in self._hosts)

    def _ready(self) -> int:
        """Executors that have all models, when all have the same."""
        found = {frozenset(model.executors) for model in self._mesh.snapshot().models if model.name in STEP_S}
        return len(next(iter(found))) if len(found) == 1 else -1

    @property
    def ports(self) -> list[int]:
        """Of the admissions."""
        return [part.port for part in self._mesh.snapshot().components if part.service == "admission"]

    @property
    def key(self) -> str:
        """Of a tenant without limits."""
        return self._mesh.key

    def groups(self) -> dict[str, list[int]]:
        """Pids by service; executors are "engine", all else "rest"."""
        snapshot = self._mesh.snapshot()
        found: dict[str, list[int]] = {name: [] for name in (*SERVING, "engine", "rest")}
        for part in snapshot.components:
            name = "engine" if part.service == "executor" else part.service
            if part.pid is not None:
                found[name if name in found else "rest"] += family(part.pid)
        found["engine"] += [host.pid for host, _ in self._hosts]
        found["rest"].append(snapshot.supervisor)
        return found

    def memory_mb(self) -> dict[str, float]:
        """Of each service's processes together (PSS)."""
        return {name: memory_mb(pids) for name, pids in self.groups().items()}

    def settle(self) -> None:
        """Waits until what is charged does next to nothing."""
        pids = [pid for name in SERVING for pid in self.groups()[name]]
        end, used = time.monotonic() + SETTLE_S, float("inf")
        while used > SETTLED * SETTLE_STEP_S and time.monotonic() < end:
            before = cpu_s(pids)
            time.sleep(SETTLE_STEP_S)
            used = cpu_s(pids) - before


def _write_policy(folder: Path) -> None:
    tenants = max(point.tenants for axis in AXES.values() for point in axis.points)
    kinds: dict[str, dict[str, dict[str, object]]] = {
        "models": {
            name: {**MODEL, "name": name, "simulation": {"step_base_us": round(step_s * 1e6), "seed": 7}}
            for name, step_s in STEP_S.items()
        },
        "tiers": {name: dict(tier) for name, tier in TIERS.items()},
        "tenants": {
            f"tenant-{number}": {
                "name": f"tenant-{number}", "key_sha256": [sha256(key(number).encode()).hexdigest()],
                "max_concurrency": 1000, "requests_per_s": 100_000, "tokens_per_min": 1_000_000_000,
            }
            for number in range(tenants)
        },
    }  # fmt: skip
    for kind, objects in kinds.items():
        (folder / kind).mkdir(parents=True)
        for name, one in objects.items():
            (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(one))
