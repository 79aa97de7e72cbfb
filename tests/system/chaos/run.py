"""Is a token ever lost or doubled? Faults from a seed on a running mesh under load, and what must hold after them.

    python -m tests.system.chaos.run [--cast apart|monoliths] [--seed N] [--minutes M] [--only KIND] [--every S]

Rounds of faults, each followed by a rest in which everything is checked. A run with the same seed has the same
schedule; when its faults meet which request is up to the machine.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path

from headrace.inference.v1 import inference_pb2 as pb
from libs.registry import RegistryError
from tests.system.chaos import network, questions
from tests.system.chaos.checks import violations
from tests.system.chaos.cluster import Cluster, cluster
from tests.system.chaos.faults import Faults
from tests.system.chaos.history import Expected, Injected, Rest, Round
from tests.system.chaos.load import Load, undisturbed
from tests.system.chaos.report import Report
from tests.system.chaos.rest import Logs, idle, look
from tests.system.chaos.schedule import CASTS, CLIENT, EVERY_S, KINDS, SHORT_MINUTES, Cast, Fault, draw

LOOPS = 20
"""Requests in flight, more or less."""
REASONS = [value.name.removeprefix("ERROR_REASON_") for value in pb.ErrorReason.DESCRIPTOR.values]
DOCUMENTED = frozenset({*REASONS, "UNAVAILABLE"}) - {"UNSPECIFIED", "INTERNAL"}
"""docs/operations.md has each of them, and the code of a status without reason; INTERNAL is a bug."""
WATCH_S = 0.3
LOG_CHARS = 2000
INSIDE = "--inside"

Say = Callable[[str], None]


class Run:
    """One run on one mesh."""

    def __init__(self, mesh: Cluster, load: Load, faults: Faults, expected: Sequence[Expected], say: Say) -> None:
        self.report = Report()
        self._mesh = mesh
        self._load = load
        self._faults = faults
        self._expected = expected
        self._say = say
        self._logs = Logs(mesh)
        self._first: dict[str, Rest] = {}
        self._last: Mapping[str, Rest] = {}

    async def begin(self) -> None:
        """The mesh is warm: what it holds now, it may hold."""
        busy = await idle(self._mesh)
        assert not busy, f"before any fault: {busy}"
        self._last = await look(self._mesh)
        self._first = dict(self._last)

    async def round(self, number: int, schedule: Sequence[Fault]) -> None:
        """Faults under load, then a rest, then the checks."""
        stop = asyncio.Event()
        one = Round(records=self._load.forget(), before=self._last, first=dict(self._first))
        async with self._load.open(), asyncio.TaskGroup() as group:
            group.create_task(self._load.loops(LOOPS, stop))
            watch = group.create_task(self._watch(one))
            async with asyncio.TaskGroup() as faults:
                for fault in schedule:
                    faults.create_task(self._inject(fault, one))
            await self._mesh.well()
            await self._mesh.etcd_well()
            await asyncio.sleep(1.0)
            stop.set()
            watch.cancel()
        one.deaths += self._mesh.deaths()
        one.busy = await idle(self._mesh, self._say)
        one.after = self._last = await look(self._mesh)
        one.traces = self._logs.traces()
        self._first = {
            name: self._first[name] if name in self._first and self._first[name].life == now.life else now
            for name, now in one.after.items()
        }
        self._count(number, one)

    async def _watch(self, one: Round) -> None:
        while True:
            one.deaths += self._mesh.deaths()
            await asyncio.sleep(WATCH_S)

    async def _inject(self, fault: Fault, one: Round) -> None:
        await asyncio.sleep(fault.at_s)
        try:
            injected = await self._faults.inject(fault)
        except (AssertionError, TimeoutError, RegistryError) as error:
            one.deaths.append(f"after {fault} the mesh did not come back: {str(error)[-LOG_CHARS:]}")
            self._say(f"  {one.deaths[-1]}")
            return
        one.faults.append(injected)
        self._say(f"  {_told(injected)}")

    def _count(self, number: int, one: Round) -> None:
        alone = Report()
        for counted in (alone, self.report):
            counted.add(one, violations(one, self._expected, questions.RECORDED, DOCUMENTED))
        self._say(f"round {number}: {alone}")
        for line in alone.violations:
            self._say(f"  violation: {line}")


def _told(injected: Injected) -> str:
    what = f" ({injected.what})" if injected.what else ""
    return f"{injected.began_s:.1f} to {injected.mended_s:.1f} s: {injected.fault}{what}"


async def run(cast: Cast, seed: int, schedule: Sequence[Sequence[Fault]], wires: bool, say: Say) -> Report:
    """Runs a schedule on a mesh of its own. Raises AssertionError when the mesh does not come back."""
    chance, began = random.Random(f"run {seed}"), time.monotonic()
    asked = questions.questions(seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        (folder / "policy").mkdir()
        questions.write_policy(folder / "policy")
        net = stack.enter_context(network.Network(CLIENT) if wires else nullcontext())
        mesh = await stack.enter_async_context(cluster(cast, folder, folder / "policy", net))
        say(f"the mesh is up after {time.monotonic() - began:.1f} s")
        load = Load([mesh.door(0), mesh.door(1)], asked, chance, began)
        expected = await undisturbed(load, asked)
        going = Run(mesh, load, Faults(mesh, load, chance, began), expected, say)
        await going.begin()
        say(f"at rest after {time.monotonic() - began:.1f} s")
        for number, faults in enumerate(schedule, 1):
            await going.round(number, faults)
        return going.report


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cast", choices=list(CASTS), default="apart", help="the four services apart, or in monoliths")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=SHORT_MINUTES, help="of faults, rests not counted")
    parser.add_argument("--every", type=float, default=EVERY_S, help="mean seconds between two faults")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="kinds of faults; all without")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside and not (why := network.possible()):
        os.execvp("unshare", [*network.enter(), sys.executable, "-m", "tests.system.chaos.run",
                              *sys.argv[1:], "--seed", str(arguments.seed), INSIDE])  # fmt: skip

    def say(line: str) -> None:
        print(line, flush=True)

    if not arguments.inside:
        say(f"no network of its own, so no fault of the network: {why}")
    cast = CASTS[arguments.cast]
    schedule = draw(
        arguments.seed, arguments.minutes, cast,
        every_s=arguments.every, kinds=arguments.only or (), wires=arguments.inside,
    )  # fmt: skip
    say(f"seed {arguments.seed}: {sum(map(len, schedule))} faults in {len(schedule)} rounds")
    began = time.monotonic()
    report = asyncio.run(run(cast, arguments.seed, schedule, arguments.inside, say))
    say(f"seed {arguments.seed}: {report}, {time.monotonic() - began:.0f} s")
    say(f"faults: {dict(report.faults.most_common())}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
