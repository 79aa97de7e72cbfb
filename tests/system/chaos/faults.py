"""Breaks what the schedule says, and mends it."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, suppress
from signal import SIGSTOP

from libs.registry import EtcdClient, RegistryError
from tests.system.chaos import questions
from tests.system.chaos.cluster import DISK, QUOTA_BYTES, Cluster, Process
from tests.system.chaos.history import Injected
from tests.system.chaos.load import Load
from tests.system.chaos.schedule import CLIENT, ETCD, Fault, service_of
from tests.system.etcd import BINARY, leader_of
from tests.system.placement_mesh import ROOT

GHOST = "ghost"
DRAIN_S = 30.0
"""A process that was asked to end has done so: it gives its works 10 s."""
ETCDCTL = BINARY.parent / "etcdctl"
JUNK = "/junk/"
JUNK_BYTES = 1_000_000
FILL_S = 60.0
"""Within so long etcd's quota is full."""


class Faults:
    """The hand that breaks things.

    Args:
        load: Asks for what faults of clients ask for.
        began: Monotonic seconds at which the run's clock is 0.
    """

    def __init__(self, cluster: Cluster, load: Load, chance: random.Random, began: float) -> None:
        self._cluster = cluster
        self._load = load
        self._chance = chance
        self._began = began
        self._locks = defaultdict[str, asyncio.Lock](asyncio.Lock)
        """Of each service: held while one of its processes is in trouble."""

    async def inject(self, fault: Fault) -> Injected:
        """One fault, from its beginning until what it broke is well. Raises AssertionError when that takes too long.

        It begins later than scheduled when its services are not well yet: a busy machine needs its time.
        """
        services = sorted({service_of(name) for name in fault.targets} - {CLIENT})
        async with AsyncExitStack() as stack:
            for service in services:
                await stack.enter_async_context(self._locks[service])
            began_s = self._now()
            what = await self._break(fault)
            await self._cluster.well([name for name in fault.targets if name in self._cluster.processes])
            if ETCD in fault.targets:
                await self._cluster.etcd_well()
            return Injected(fault, began_s, self._now(), what)

    async def _break(self, fault: Fault) -> str:
        match fault.kind:
            case "kill" | "kill two" | "kill all of a service":
                await self._kill(fault)
            case "kill as it starts":
                await self._kill_twice(fault)
            case "drain":
                await self._drain(fault)
            case "freeze" | "freeze for long":
                await self._freeze(fault)
            case "lose power":
                await self._lose_power(fault)
            case "isolate" | "cut" | "cut for long" | "cut one way":
                await self._cut(fault)
            case "delay":
                await self._delay(fault)
            case "the clock jumps":
                await self._jump(fault)
            case "clients vanish" | "clients stop reading":
                await self._clients(fault)
            case "a client is killed" | "a client freezes" | "a client loses power":
                await self._kill_client(fault)
            case "fill etcd's quota":
                await self._fill_quota(fault)
            case "fill a member's disk":
                return await self._fill_disk(fault)
            case _:
                return await self._etcd(fault)
        return ""

    # --- processes ---------------------------------------------------------------------------------

    async def _kill(self, fault: Fault) -> None:
        for process in self._processes(fault):
            process.kill()
        await asyncio.sleep(fault.lasts_s)
        for process in self._processes(fault):
            process.start()

    async def _kill_twice(self, fault: Fault) -> None:
        """The second time somewhere between its first line and its first work."""
        [process] = self._processes(fault)
        process.kill()
        process.start()
        await asyncio.sleep(fault.lasts_s)
        process.kill()
        process.start()

    async def _drain(self, fault: Fault) -> None:
        """As a rolling restart does it. Raises AssertionError when the process does not end well."""
        [process] = self._processes(fault)
        code = await asyncio.to_thread(process.stop, DRAIN_S)
        log = process.log()
        await asyncio.sleep(fault.lasts_s)
        process.start()
        assert code == 0, f"{process.name} ended with {code} when it was asked to end:\n{log}"

    async def _freeze(self, fault: Fault) -> None:
        [process] = self._processes(fault)
        process.freeze()
        await asyncio.sleep(fault.lasts_s)
        process.thaw()

    async def _lose_power(self, fault: Fault) -> None:
        """Its neighbors do not hear that it has gone: no connection is closed before it is back."""
        [process] = self._processes(fault)
        with self._isolated(process.name):
            process.kill()
            await asyncio.sleep(fault.lasts_s)
        process.start()

    async def _jump(self, fault: Fault) -> None:
        [process] = self._processes(fault)
        process.move_clock(fault.amount)
        await asyncio.sleep(fault.lasts_s)
        process.move_clock(0.0)

    # --- wires -------------------------------------------------------------------------------------

    async def _cut(self, fault: Fault) -> None:
        if fault.kind == "isolate":
            with self._isolated(fault.targets[0]):
                await asyncio.sleep(fault.lasts_s)
            return
        one, other = fault.targets
        pairs = [pair for name in self._wires(other) for pair in ((one, name), (name, one))]
        if fault.kind == "cut one way":
            pairs = pairs[self._chance.randint(0, 1) :: 2]
        with self._dropped(pairs):
            await asyncio.sleep(fault.lasts_s)

    async def _delay(self, fault: Fault) -> None:
        network, (one, other) = self._cluster.network, fault.targets
        assert network is not None
        pairs = [pair for name in self._wires(other) for pair in ((one, name), (name, one))]
        for pair in pairs:
            network.delay(*pair, fault.amount / 2)
        await asyncio.sleep(fault.lasts_s)
        for pair in pairs:
            network.hurry(*pair)

    def _isolated(self, name: str) -> AbstractContextManager[None]:
        return self._dropped([(name, ""), ("", name)])

    @contextmanager
    def _dropped(self, pairs: Sequence[tuple[str, str]]) -> Iterator[None]:
        """What one of a pair sends to the other gets lost; "" is everybody."""
        network = self._cluster.network
        assert network is not None
        for pair in pairs:
            network.cut(*pair)
        try:
            yield
        finally:
            for pair in pairs:
                network.mend(*pair)

    def _wires(self, name: str) -> Sequence[str]:
        return list(self._cluster.members) if name == ETCD else [name]

    # --- etcd --------------------------------------------------------------------------------------

    async def _etcd(self, fault: Fault) -> str:
        members = list(self._cluster.members.values())
        leader = await leader_of(members)
        others = [member for member in members if member is not leader]
        few = {"leader": [leader], "majority": [leader, self._chance.choice(others)]}
        chosen = few.get(fault.kind.rpartition(" ")[2], members)
        for member in chosen:
            (member.kill if fault.kind.startswith("kill") else member.freeze)()
        await asyncio.sleep(fault.lasts_s)
        for member in chosen:
            (member.launch if fault.kind.startswith("kill") else member.thaw)()
        return ", ".join(member.name for member in chosen)

    async def _fill_quota(self, fault: Fault) -> None:
        """etcd refuses everything that would take room, until somebody makes some."""
        try:
            async with asyncio.timeout(FILL_S):
                while "NOSPACE" not in await asyncio.to_thread(self._etcdctl, "alarm", "list"):
                    await self._junk(QUOTA_BYTES // JUNK_BYTES + 1)
            await asyncio.sleep(fault.lasts_s)
        finally:
            await asyncio.to_thread(self._clear)

    async def _fill_disk(self, fault: Fault) -> str:
        member = self._cluster.members[DISK]
        ballast = member.folder / DISK / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        await self._junk(8)
        await asyncio.sleep(fault.lasts_s)
        ballast.unlink()
        assert member.process is not None
        died = member.process.poll() is not None
        if died:
            member.kill()
            member.launch()
        await self._cluster.etcd_well()
        await asyncio.to_thread(self._clear)
        return f"{DISK}, which {'died of it' if died else 'lived on'}"

    async def _junk(self, count: int) -> None:
        endpoints = [member.endpoint for member in self._cluster.members.values()]
        async with EtcdClient(endpoints, None, patience_s=1.0) as client:
            with suppress(RegistryError):
                for number in range(count):
                    await client.put(f"{JUNK}{number}", self._chance.randbytes(JUNK_BYTES))

    def _clear(self) -> None:
        """What an operator does: delete, compact, defragment, disarm."""
        self._etcdctl("del", "--prefix", JUNK)
        status = json.loads(self._etcdctl("endpoint", "status", "-w", "json"))
        self._etcdctl("compact", str(max(each["Status"]["header"]["revision"] for each in status)))
        self._etcdctl("defrag")
        self._etcdctl("alarm", "disarm")

    def _etcdctl(self, *words: str) -> str:
        endpoints = ",".join(member.endpoint for member in self._cluster.members.values())
        ran = subprocess.run(
            [str(ETCDCTL), "--endpoints", endpoints, "--command-timeout", "20s", *words],
            capture_output=True, text=True, env={"ETCDCTL_API": "3", "PATH": ""},
        )  # fmt: skip
        if ran.returncode and "required revision has been compacted" not in ran.stderr:
            raise AssertionError(f"etcdctl {' '.join(words)}: {ran.stderr}")
        return ran.stdout

    # --- clients -----------------------------------------------------------------------------------

    async def _clients(self, fault: Fault) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(int(fault.amount)):
                if fault.kind == "clients vanish":
                    group.create_task(self._load.ask(leaves_after=self._chance.randint(1, 60)))
                else:
                    group.create_task(self._load.ask(stops_s=fault.lasts_s))

    async def _kill_client(self, fault: Fault) -> None:
        """A process with answers on their way to it. One that freezes reads nothing before it dies; of one that loses
        power, nobody hears."""
        network = self._cluster.network
        ghost = await asyncio.create_subprocess_exec(
            *(network.prefix(GHOST) if network is not None else []), sys.executable, "-m", "tests.system.chaos.ghost",
            self._cluster.door(self._chance.randint(0, 1)), questions.key(questions.GHOST), questions.MODEL,
            str(int(fault.amount)), cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert ghost.stdout is not None
            async with asyncio.timeout(40):
                await ghost.stdout.readline()
            await asyncio.sleep(0.5)
            if fault.kind == "a client freezes":
                ghost.send_signal(SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
            elif fault.kind == "a client loses power":
                with self._isolated(GHOST):
                    ghost.kill()
                    await asyncio.sleep(fault.lasts_s)
        finally:
            with suppress(ProcessLookupError):
                ghost.kill()
            await ghost.wait()

    # -----------------------------------------------------------------------------------------------

    def _processes(self, fault: Fault) -> list[Process]:
        return [self._cluster.processes[name] for name in fault.targets if name != CLIENT]

    def _now(self) -> float:
        return time.monotonic() - self._began
