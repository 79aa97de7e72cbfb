"""Headrace beside other systems: the same work, the same machine, each pinned to one core.

    python -m tests.bench.peers [--peers a,b] [--phases p,q] [--doors d,e] [--rounds N] [--minutes M]
                                [--out FILE.json] [--plot FILE.png]

What is measured runs alone on one core; engines and load generators on another one, in C where they are ours. One
system is up at a time. Rounds go over all systems, each from another one on. The first call installs what it needs
(some minutes). Results are written after every run: an interrupted comparison keeps what it has.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.bench.command import end, say, some_of
from tests.bench.peers.catalogue import SYSTEMS, USUAL
from tests.bench.peers.deaths import kill_one
from tests.bench.peers.measure import Idle, Result, RunFailed, as_json, idle, measure, scaled
from tests.bench.peers.native import program
from tests.bench.peers.phases import PHASES
from tests.bench.peers.plot import picture
from tests.bench.peers.processes import Cores
from tests.bench.peers.report import markdown
from tests.bench.peers.results import DISTURBED
from tests.bench.peers.systems.system import System

DEATH = "death"


class Comparison:
    """All rounds, and their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cores = Cores.of_this_machine()
        self.end = time.monotonic() + options.minutes * 60
        self.results: dict[str, Any] = {
            "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
            f"Linux {platform.release()}, Python {platform.python_version()}",
            "rounds": options.rounds,
            "phases": {phase.name: phase.title for phase in PHASES.values()},
            "offered": {phase.name: phase.offered for phase in PHASES.values()},
            "systems": {
                name: {"note": SYSTEMS[name].note, "charged": list(SYSTEMS[name].charged)} for name in options.peers
            },
            "idle": [], "runs": [], "deaths": [], "failures": [],
        }  # fmt: skip

    def run(self) -> None:
        """Round by round."""
        for number in range(self.options.rounds):
            turn = number % len(self.options.peers)
            for name in [*self.options.peers[turn:], *self.options.peers[:turn]]:
                if time.monotonic() > self.end:
                    self._failed(f"round {number + 1}, {name}: no time left")
                    continue
                with tempfile.TemporaryDirectory(prefix="headrace-peers-") as folder:
                    try:
                        self._one(SYSTEMS[name](Path(folder), self.cores), name, number)
                    except Exception as error:  # whatever befalls one system, the others are still to be measured
                        self._failed(f"round {number + 1}, {name}: {error!r}")

    def _one(self, system: System, name: str, number: int) -> None:
        begin = time.monotonic()
        phases = [] if system.only_death else [name for name in self.options.phases if name != DEATH]
        dies = DEATH in self.options.phases and number == 0 and system.mortal
        if not phases and not dies:
            return
        try:
            system.start()
            if phases:
                self._keep("idle", idle(system, name, number, time.monotonic() - begin))
            for phase in phases:
                self._phase(system, name, phase, number)
            if dies:
                system.prepare_death()
                self._keep("deaths", asyncio.run(kill_one(system, name)))
        finally:
            system.stop()

    def _phase(self, system: System, name: str, phase: str, number: int) -> None:
        if PHASES[phase].quick_ack and not system.delayed:
            return
        system.pace(PHASES[phase])
        for door in system.doors:
            if self.options.doors and door not in (*self.options.doors, "http"):
                continue
            if time.monotonic() > self.end:
                self._failed(f"round {number + 1}, {name}, {door}, {phase}: no time left")
                return
            for result in self._tries(system, name, door, phase, number):
                self._keep("runs", result)

    def _tries(self, system: System, name: str, door: str, phase: str, number: int) -> Iterator[Result]:
        """Again when others disturbed it; the report chooses."""
        wanted = scaled(PHASES[phase], self.options.seconds)
        rate = 0.0
        if wanted.half_of:
            rate = self._rate(name, door, wanted.half_of, number) / 2
            if not rate:
                return
        for _ in range(self.options.tries):
            try:
                result = measure(system, name, door, wanted, number, rate)
            except RunFailed as error:
                self._failed(str(error))
                return
            yield result
            if result.foreign <= DISTURBED or time.monotonic() > self.end:
                return

    def _rate(self, name: str, door: str, phase: str, number: int) -> float:
        """Requests per second of the quietest run of a phase in this round; 0 without one."""
        runs = [
            run for run in self.results["runs"]
            if (run["system"], run["door"], run["phase"], run["round"]) == (name, door, phase, number)
        ]  # fmt: skip
        return min(((run["foreign"], run["done"] / run["seconds"]) for run in runs), default=(0.0, 0.0))[1]

    def _keep(self, kind: str, found: Any) -> None:
        self.results[kind].append(as_json(found))
        if isinstance(found, Result):
            say(
                f"{found.system:15} {found.door:12} {found.phase:9} {found.cpu_us_per_token:8.1f} µs/token "
                f"{found.cpu_us_per_request:8,.0f} µs/request {found.tokens_per_s:9,.0f} tokens/s first token "
                f"{found.first_us['p50'] / 1000:.2f}, {found.first_us['p99'] / 1000:.2f} ms, {found.failed} failed, "
                f"others used {found.foreign:.2f} cores"
            )
        elif isinstance(found, Idle):
            say(f"{found.system:15} up in {found.start_s:.1f} s, {sum(found.memory_mb.values()):.0f} MB in all")
        else:
            say(f"{found.system:15} {found}")
        self._write()

    def _failed(self, text: str) -> None:
        say(f"FAILED: {text}")
        self.results["failures"].append(text)
        self._write()

    def _write(self) -> None:
        if self.options.out:
            self.options.out.write_text(json.dumps(self.results, indent=1) + "\n")


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    phases, doors = [*PHASES, DEATH], ["generate", "session", "generate_ids", "session_ids"]
    parser.add_argument("--peers", type=some_of([*SYSTEMS]), default=USUAL, help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--phases", type=some_of(phases), default=phases, help=f"of {', '.join(phases)}")
    parser.add_argument("--doors", type=some_of(doors), default=[], help=f"of Headrace; of {', '.join(doors)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="of each window, instead of the phase's own")
    parser.add_argument("--tries", type=int, default=2, help="of a run that others disturb")
    parser.add_argument("--minutes", type=float, default=60.0, help="nothing is begun after them")
    parser.add_argument("--out", type=Path, help="the results as JSON")
    parser.add_argument("--plot", type=Path, help="a picture of them")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, end)
    os.environ.pop("PYTHONWARNINGS", None)
    chosen = options()
    program("sse_load")
    comparison = Comparison(chosen)
    comparison.run()
    print(markdown(comparison.results))
    if chosen.plot:
        picture(comparison.results).savefig(chosen.plot)


if __name__ == "__main__":
    main()
