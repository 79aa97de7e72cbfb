"""Is a placement ever lost or doubled? Random faults from a seed, and the invariants after each.

    python -m tests.system.placement_faults [--faults 50] [--seed N]

Kills placement's leader, executors (also while they load) and etcd's leader, freezes any of them, and changes the
catalogue and the demand, now and then two of these at once. After each fault, once what died is back, the mesh has
to come to rest with every copy where it belongs (`Faults.settle`); a watch sees every revision in between
(`History`).
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from headrace.registry.v1 import registry_pb2 as pb
from libs.catalogue import ModelSpec
from libs.registry import EtcdClient, RegistryError, keys
from libs.tasks import Tasks
from tests.system.etcd import leader_of
from tests.system.placement_history import History
from tests.system.placement_mesh import EXECUTORS, Node, PlacementMesh, placement_mesh

REST_S = 75.0
"""Within this long after a fault the mesh is at rest again."""
STILL_S = 1.2
"""At rest is what has not changed for this long."""
CATALOGUE = {
    "spread": pb.Model(replicas=2, memory_bytes=20, spread_label="zone"),
    "pinned": pb.Model(replicas=1, memory_bytes=30, pinned=True),
    "zone-b": pb.Model(replicas=1, memory_bytes=25, required_labels={"zone": "b"}),
    "many": pb.Model(replicas=3, memory_bytes=15),
    "elastic": pb.Model(memory_bytes=10, scaling=pb.Scaling(max=2, works_per_copy=4, idle=Duration(seconds=2))),
    "guest": pb.Model(replicas=1, memory_bytes=35),
}
"""200 of 400 bytes: whatever happens, there is a place for each, and for one more of each while it rolls out."""


def model(name: str, revision: int, replicas: int | None = None) -> pb.Model:
    """An entry of the catalogue; its copies take a third of a second to load."""
    made = pb.Model()
    made.CopyFrom(CATALOGUE[name])
    made.name, made.source, made.revision = name, "simulated:", str(revision)
    made.context_tokens, made.blocks, made.block_tokens, made.slots, made.step_tokens = 1024, 64, 16, 4, 256
    made.simulation.load_us = 300_000
    if replicas is not None:
        made.replicas = replicas
    return made


class Faults:
    """One run."""

    def __init__(self, mesh: PlacementMesh, seed: int, history: History) -> None:
        self.log: list[str] = []
        self._mesh = mesh
        self._random = random.Random(seed)
        self.history = history
        self._catalogue: dict[str, pb.Model] = {}
        self._revision = 0
        self._elastic = 0
        """Copies that the demand asks for."""
        self._dead = set[int]()
        """Elections whose winner was killed."""

    def kinds(self) -> dict[str, Callable[[], Awaitable[str]]]:
        """Every kind of fault, by name."""
        return {
            "kill placement's leader": self.kill_leader,
            "kill an executor": self.kill_executor,
            "kill an executor while it loads": self.kill_loading,
            "kill etcd's leader": self.kill_etcd,
            "freeze placement's leader": self.freeze_leader,
            "freeze an executor": self.freeze_executor,
            "freeze etcd's leader": self.freeze_etcd,
            "change the catalogue": self.change_catalogue,
            "kill placement's leader in mid-plan": self.kill_leader_in_plan,
            "lose an executor for good": self.lose_executor,
            "change the demand": self.change_demand,
        }

    async def begin(self) -> None:
        """Fills the catalogue."""
        for name in CATALOGUE:
            await self._write(model(name, 0))
        await self.settle("the start")

    async def inject(self, kind: str) -> None:
        """One fault, and the way back to rest."""
        started = time.monotonic()
        what = await self.kinds()[kind]()
        self._note(f"{kind}: {what}")
        for node in self._mesh.nodes.values():
            node.thaw()
            node.start()
        for member in self._mesh.etcd:
            if member.process is None:
                member.launch()
        await self.settle(kind)
        self._note(f"  at rest after {time.monotonic() - started:.1f} s")

    async def kill_leader(self) -> str:
        """The next has to go on."""
        node = await self._mesh.leader()
        if (leader := await self._mesh.registry.client.get(keys.leader("placement"))) is not None:
            self._dead.add(leader.create_revision)
        return self._kill(node)

    async def kill_leader_in_plan(self) -> str:
        """Right after a change that makes it write."""
        changed = await self.change_catalogue()
        await asyncio.sleep(self._random.uniform(0.0, 0.3))
        return f"{await self.kill_leader()}, {changed}"

    async def kill_executor(self) -> str:
        """It comes back at once."""
        return self._kill(self._executor())

    async def lose_executor(self) -> str:
        """It comes back after its copies have moved."""
        what = self._kill(self._executor())
        await asyncio.sleep(16.0)  # the lease, and the absence
        return what

    async def kill_loading(self) -> str:
        """A new version is being loaded, and the process dies."""
        name = self._random.choice(self._lying())
        await self._roll(name)
        node = await self._mesh.loading(20.0)
        assert node is not None, f"nobody loaded the new version of {name}"
        return f"{self._kill(node)}, while {name} rolled out"

    async def kill_etcd(self) -> str:
        """A cluster of three goes on with two."""
        member = await leader_of(self._mesh.etcd)
        member.kill()
        await asyncio.sleep(self._random.choice((0.2, 3.0)))
        return member.name

    async def freeze_etcd(self) -> str:
        """Its connections stay open, and nothing answers."""
        member = await leader_of(self._mesh.etcd)
        member.freeze()
        await asyncio.sleep(self._random.choice((1.0, 4.0)))
        member.thaw()
        return member.name

    async def freeze_leader(self) -> str:
        """Shorter or longer than its lease; a change meanwhile, so that there is something to write twice."""
        node = await self._mesh.leader()
        node.freeze()
        changed = await self.change_catalogue()
        await asyncio.sleep(self._random.choice((1.0, 7.0)))
        node.thaw()
        return f"{node.name}, {changed}"

    async def freeze_executor(self) -> str:
        """Shorter or longer than its lease."""
        node = self._executor()
        node.freeze()
        await asyncio.sleep(self._random.choice((1.0, 7.0)))
        node.thaw()
        return node.name

    async def change_catalogue(self) -> str:
        """A model comes or goes, has more or fewer copies, or a new version."""
        match self._random.choice(("guest", "many", "roll", "roll")):
            case "guest" if "guest" in self._catalogue:
                del self._catalogue["guest"]
                await self._mesh.registry.delete(keys.model("guest"))
                return "guest left"
            case "guest":
                await self._write(model("guest", self._next()))
                return "guest came"
            case "many":
                replicas = self._random.choice(sorted({1, 2, 3} - {self._catalogue["many"].replicas}))
                revision = int(self._catalogue["many"].revision)
                await self._write(model("many", revision, replicas))
                return f"{replicas} copies of many"
            case _:
                name = self._random.choice(self._lying())
                await self._roll(name)
                return f"a new version of {name}"

    async def change_demand(self) -> str:
        """A model that is loaded on demand gets none, some or many works; placement's leader dies, or not."""
        works = self._random.choice([works for works in (0, 3, 8) if -(-works // 4) != self._elastic])
        asked = pb.ModelDemand(model="elastic", running=works, last_request=time.time() if works else 0)
        await self._mesh.registry.put_message(keys.demand("b1"), pb.Demand(instance="b1", models=[asked]))
        self._elastic = -(-works // 4)
        died = f", {await self.kill_leader()} died" if self._random.random() < 0.5 else ""
        return f"{works} works{died}"

    async def settle(self, after: str) -> None:
        """Waits until all is at rest and as it should be. Raises AssertionError with the history."""
        end, still_since, before = time.monotonic() + REST_S, time.monotonic(), b""
        problems = ["nothing was seen"]
        while time.monotonic() < end:
            await asyncio.sleep(0.1)
            try:
                placements, executors = await self._mesh.placements(), await self._mesh.executors()
            except RegistryError:
                continue
            now = _print(placements) + _print(executors)
            if now != before:
                still_since, before = time.monotonic(), now
            elif time.monotonic() - still_since > STILL_S:
                problems = await self._alive(executors) or self._problems(placements, executors)
                if not problems:
                    break
        problems += self.history.violations
        if problems:
            state = {key: pb.ModelState.Name(copy.state) for name, one in executors.items()
                     for copy in one.models for key in [f"{name}/{copy.pool} {copy.reason}"]}  # fmt: skip
            lacks = await self._mesh.registry.get_messages(keys.UNPLACED, pb.Unplaced)
            logs = "\n".join(f"--- {name}\n{node.log()}" for name, node in self._mesh.nodes.items())
            raise AssertionError(
                "\n".join([f"after {after}:", *problems, "history:", *self.log, f"placed: {sorted(placements)}",
                           f"reported: {state}", f"unplaced: {lacks}", logs])
            )  # fmt: skip

    async def _alive(self, executors: dict[str, pb.Executor]) -> list[str]:
        """What the etcd of a moment ago could hide: who died is not back, or leads still."""
        found = [f"{name} is not back" for name, one in executors.items()
                 if one.start_time < self._mesh.nodes[name].started - 0.1]  # fmt: skip
        leader = await self._mesh.registry.client.get(keys.leader("placement"))
        if leader is None or leader.create_revision in self._dead:
            found.append("nobody has followed the leader of placement")
        return found

    def _problems(self, placements: dict[str, pb.Placement], executors: dict[str, pb.Executor]) -> list[str]:
        """What should not be once all is at rest."""
        found = []
        if missing := EXECUTORS.keys() - executors.keys():
            found.append(f"{sorted(missing)} are not there")
        for key, placement in placements.items():
            if placement.executor not in EXECUTORS or placement.model.name not in self._catalogue:
                found.append(f"{key} is placed, and nobody knows it")
        for name, wanted in self._catalogue.items():
            pool = ModelSpec.from_proto(wanted).pool
            at = [p.executor for p in placements.values() if p.model.name == name]
            current = [p.executor for p in placements.values() if p.pool == pool]
            count = wanted.replicas or self._elastic
            if len(current) != count or at != current:
                found.append(f"{name}: {count} copies wanted, {at} have one, {current} of the newest version")
            zones = [EXECUTORS[executor] for executor in current if executor in EXECUTORS]
            if wanted.required_labels and set(zones) != {"b"}:
                found.append(f"{name} lies in zones {zones}")
        placed = {(p.executor, p.pool) for p in placements.values()}
        reported = {(executor, copy.pool) for executor, one in executors.items() for copy in one.models}
        ready = {
            (executor, copy.pool)
            for executor, one in executors.items()
            for copy in one.models
            if copy.state == pb.MODEL_STATE_READY
        }
        if placed != reported:
            found.append(f"placed and not reported: {placed - reported}; reported only: {reported - placed}")
        if placed - ready:
            found.append(f"not ready: {placed - ready}")
        for name, one in executors.items():
            if one.used_bytes > one.memory_bytes:
                found.append(f"{name} uses {one.used_bytes} bytes")
        return found

    def _lying(self) -> list[str]:
        """Models that have copies: a fault that changes another one would be none."""
        return sorted(name for name in self._catalogue if name != "elastic" or self._elastic)

    def _executor(self) -> Node:
        return self._mesh.nodes[self._random.choice(sorted(EXECUTORS))]

    def _kill(self, node: Node) -> str:
        node.kill()
        return node.name

    async def _roll(self, name: str) -> None:
        changed = model(name, self._next())
        changed.replicas = self._catalogue[name].replicas
        await self._write(changed)

    async def _write(self, message: pb.Model) -> None:
        self._catalogue[message.name] = message
        await self._mesh.registry.put_message(keys.model(message.name), message)

    def _next(self) -> int:
        self._revision += 1
        return self._revision

    def _note(self, line: str) -> None:
        self.log.append(line)
        if sys.stdout.isatty() or __name__ == "__main__":
            print(line, flush=True)


def _print(messages: "dict[str, pb.Placement] | dict[str, pb.Executor]") -> bytes:
    found: dict[str, Message] = dict(messages)
    return b"".join(found[key].SerializeToString(deterministic=True) for key in sorted(found))


async def run(count: int, seed: int, kinds: list[str] | None = None) -> Faults:
    """Injects faults. Raises AssertionError, with the seed and the history, when an invariant is broken.

    Args:
        kinds: Which, in order; None draws `count` of all kinds, each as often as the others.
    """
    async with placement_mesh() as mesh:
        async with EtcdClient([each.endpoint for each in mesh.etcd], mesh.etcd[0].tls) as client:
            history = History(client, {"guest", "elastic"})
            faults = Faults(mesh, seed, history)
            start, _ = await client.get_prefix(keys.PLACEMENTS)
            tasks = Tasks()
            tasks.spawn(history.follow(start + 1), "history")
            try:
                await faults.begin()
                chance = random.Random(seed)
                if kinds is None:
                    every = sorted(faults.kinds())
                    kinds = [every[n % len(every)] for n in range(count)]
                    chance.shuffle(kinds)
                for number, kind in enumerate(kinds, 1):
                    faults.log.append(f"fault {number}")
                    await faults.inject(kind)
                end = await client.put(keys.ROOT + "end", b"{}")  # the newest revision of all
                await history.complete(start + 1, end)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            finally:
                await tasks.close()
        return faults


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"{arguments.faults} faults, seed {arguments.seed}", flush=True)
    started = time.monotonic()
    faults = asyncio.run(run(arguments.faults, arguments.seed))
    seen = len(faults.history.seen)
    print(f"{arguments.faults} faults in {time.monotonic() - started:.0f} s, {seen} revisions, no invariant broken")


if __name__ == "__main__":
    main()
