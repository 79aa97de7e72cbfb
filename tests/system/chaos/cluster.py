"""The mesh that is broken: several processes of every service and three members of etcd, each on a wire of its own.

Where no network of one's own is possible, all of them share the loopback address, and wires cannot be cut.
"""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from libs.registry import EtcdClient, Registry
from services.console import policy, policy_store
from services.console.mesh.health import check_all
from services.console.mesh.plan import DOORS, IN_MONOLITH, RESTART_ORDER
from tests.system.chaos.network import Network
from tests.system.chaos.schedule import Cast
from tests.system.chaos.under_test import PAGE_BYTES
from tests.system.etcd import EtcdProcess, free_ports, healthy
from tests.system.placement_mesh import ETCD, ROOT, Node

MEMBERS = ("etcd-1", "etcd-2", "etcd-3")
DISK = MEMBERS[2]
"""The member whose data lie on a small disk, where there is one."""
DISK_BYTES = 400 * 2**20
"""etcd puts 64 MB aside for each segment of its log, and begins another when it starts."""
QUOTA_BYTES = 32 * 2**20
PORT, METRICS_PORT = 8400, 8500
"""Of the first service in a process; the next one has the next."""
START_S = 120.0
"""Of a machine that is busy with other things."""


@dataclass
class Process(Node):
    """A process of a service."""

    host: str = "127.0.0.1"
    ports: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of gRPC and of metrics, for each service in it."""
    prefix: list[str] = field(default_factory=list)
    life: int = 0
    asked: bool = False
    """It was asked to end."""

    @property
    def endpoint(self) -> str:
        """host:port of its gRPC server, of several the one that clients come to."""
        return next(iter(self.endpoints.values()))

    @property
    def endpoints(self) -> Mapping[str, str]:
        """host:port of each service in it."""
        return {service: f"{self.host}:{port}" for service, (port, _) in self.ports.items()}

    def start(self) -> None:
        """Starts it, unless it runs; its clock is right."""
        if self.process is None:
            self.life += 1
            self.move_clock(0.0)
            module = f"services.{self.service}.main"
            words = [sys.executable, "-m", "tests.system.chaos.under_test", str(self._page), module]
            with (self.folder / f"{self.name}.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [*self.prefix, *words], cwd=ROOT, env={**os.environ, **self.environment}, stdout=log, stderr=log
                )

    def stop(self, within_s: float) -> int | None:
        """SIGTERM, and waits for the end; its exit code, None when it had to be killed."""
        assert self.process is not None
        self.asked = True
        self.process.send_signal(signal.SIGTERM)
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(within_s)
        self.kill()
        self.asked = False
        return code

    def move_clock(self, ahead_s: float) -> None:
        """Its wall clock from now on is as far ahead of ours."""
        if not self._page.exists():
            self._page.write_bytes(bytes(PAGE_BYTES))
        with self._page.open("r+b") as page:
            page.write(struct.pack("d", ahead_s))

    async def tasks(self) -> Mapping[str, int]:
        """How many tasks it has, by what they run."""
        assert self.process is not None
        written = self._page.with_suffix(".tasks")
        written.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not written.exists():
                await asyncio.sleep(0.02)
        found: dict[str, int] = json.loads(written.read_text())
        return found

    def seen(self) -> psutil.Process:
        """As the kernel sees it."""
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def metrics(self) -> str:
        """Its pages of metrics. Blocks for a moment."""
        return "".join(map(self._page_at, [port for _, port in self.ports.values()]))

    def _page_at(self, port: int) -> str:
        with urllib.request.urlopen(f"http://{self.host}:{port}/metrics", timeout=5) as page:
            text: str = page.read().decode()
            return text

    @property
    def _page(self) -> Path:
        return self.folder / f"{self.name}.clock"


@dataclass
class Member(EtcdProcess):
    """A member of etcd on a wire of its own."""

    host: str = "127.0.0.1"
    prefix: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.client_port}"

    @property
    def peer(self) -> str:
        return f"{self.name}=http://{self.host}:{self.peer_port}"

    def _command(self) -> list[str]:
        words = [word.replace("127.0.0.1", self.host) for word in super()._command()]
        return [*self.prefix, *words, "--quota-backend-bytes", str(QUOTA_BYTES)]


@dataclass
class Cluster:
    """Everything, running."""

    folder: Path
    network: Network | None
    members: dict[str, Member]
    processes: dict[str, Process]
    registry: Registry

    def door(self, first: int) -> str:
        """What the SDK connects to: all admissions, this one before the others."""
        doors = [process.endpoint for process in self.processes.values() if process.service in DOORS]
        return "ipv4:" + ",".join([*doors[first:], *doors[:first]])

    @property
    def batchers(self) -> int:
        """How many there are."""
        return sum("batcher" in process.ports for process in self.processes.values())

    async def well(self, names: list[str] | None = None, within_s: float = START_S) -> None:
        """Returns when these processes, or all, serve. Raises AssertionError."""
        end = time.monotonic() + within_s
        names = list(self.processes) if names is None else names
        wanted = {f"{part} of {name}": at for name in names for part, at in self.processes[name].endpoints.items()}
        while True:
            wrong = {place: fault for place, fault in (await check_all(wanted)).items() if fault}
            if not wrong:
                return
            if time.monotonic() > end:
                ill = [name for name in names if any(place.endswith(f" of {name}") for place in wrong)]
                logs = "\n".join(f"--- {name}\n{self.processes[name].log()}" for name in ill)
                raise AssertionError(f"not well after {within_s:g} s: {wrong}\n{logs}")
            await asyncio.sleep(0.1)

    async def etcd_well(self, within_s: float = START_S) -> None:
        """Returns when every member knows a leader. Raises AssertionError, TimeoutError."""
        async with asyncio.timeout(within_s):
            await healthy(list(self.members.values()))

    def deaths(self) -> list[str]:
        """Processes that ended though nobody ended them; they are started again."""
        found = []
        for process in self.processes.values():
            running = process.process
            if running is not None and not process.asked and (code := running.poll()) is not None:
                found.append(f"{process.name} ended by itself with {code}:\n{process.log()}")
                process.process = None
                process.start()
        return found


@asynccontextmanager
async def cluster(cast: Cast, folder: Path, policy_folder: Path, network: Network | None) -> AsyncIterator[Cluster]:
    """Starts all, with the policy, and returns when all are well; ends with everything killed."""
    async with AsyncExitStack() as stack:
        if network is not None:
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder / DISK)], check=True)
        members = {name: _member(name, folder, network) for name in MEMBERS}
        for member in members.values():
            member.cluster, member.binary = ",".join(each.peer for each in members.values()), ETCD
            member.launch()
            stack.callback(member.kill)
        await healthy(list(members.values()))
        endpoints = [member.endpoint for member in members.values()]
        registry = Registry(await stack.enter_async_context(EtcdClient(endpoints, None, patience_s=10.0)))
        await policy_store.apply(registry, policy.load(policy_folder), prune=True)
        processes = {}
        for service in sorted(cast.counts, key=list[str](RESTART_ORDER).index):
            for number in range(1, cast.counts[service] + 1):
                process = _process(service, number, folder, endpoints, network)
                processes[process.name] = process
                process.start()
                stack.callback(process.kill)
        made = Cluster(folder, network, members, processes, registry)
        await made.well()
        yield made


def _member(name: str, folder: Path, network: Network | None) -> Member:
    if network is None:
        client, peer = free_ports(2)
        return Member(name, folder, client, peer)
    if name == DISK:
        disk = folder / name
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    return Member(name, folder, 2379, 2380, host=network.address(name), prefix=network.prefix(name))


def _process(service: str, number: int, folder: Path, etcd: list[str], network: Network | None) -> Process:
    name = f"{service}-{number}"
    inside = IN_MONOLITH if service == "monolith" else (service,)
    if network is None:
        free = free_ports(2 * len(inside))
        host, prefix, ports = (
            "127.0.0.1",
            list[str](),
            dict(zip(inside, zip(free[::2], free[1::2], strict=True), strict=True)),
        )
    else:
        host, prefix = network.address(name), network.prefix(name)
        ports = {each: (PORT + place, METRICS_PORT + place) for place, each in enumerate(inside)}
    environment = {
        "HEADRACE_INSTANCE": name,
        "HEADRACE_ETCD": ",".join(etcd),
        "HEADRACE_STATE_DIR": str(folder / name),
        "HEADRACE_CACHE_DIR": str(folder / "cache"),
        "HEADRACE_ENGINE": "simulated",
        "HEADRACE_TRACE_RATIO": "0.05",
        "HEADRACE_ABSENCE_S": "120",
        "HEADRACE_LOG_LEVEL": "info",
        "MALLOC_ARENA_MAX": "2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]),
    }
    for each, (port, metrics_port) in ports.items():
        own = f"HEADRACE_{each.upper()}" if service == "monolith" else "HEADRACE"
        environment |= {f"{own}_LISTEN": f"{host}:{port}", f"{own}_METRICS_PORT": str(metrics_port)}
    return Process(name, service, environment, folder, host=host, ports=ports, prefix=prefix)
