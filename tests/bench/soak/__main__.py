"""Hours of mixed requests at half of the load that saturates: nothing may grow, and every request ends as documented.

    python -m tests.bench.soak [--hours 2 | --minutes N] [--seed N] [--rate R] [--out FILE.json]
                                [--plot FILE.png]

The whole mesh as processes: Envoy, two of admission, router, batcher and executor (simulated engine). First the load
that saturates is looked for (about a minute), then requests come by chance at half of its rate, of all kinds that
mix.py has. Windows are told as they pass, and kept in --out: an interrupted run (Ctrl-C) keeps what it has. Exits with
1 when the verdict is not good.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from tests.bench.soak import mix, rules, watch
from tests.bench.soak.clients import Plan
from tests.bench.soak.plot import picture
from tests.bench.soak.result import Result
from tests.system import fuzz_checks
from tests.system.mesh import Mesh

SAMPLE_S = 5.0
WINDOWS = 120
"""Of a long run; a window of a short one has LEAST_WINDOW_S."""
LEAST_WINDOW_S = 15.0
FLIGHTS = (64, 128, 256, 512)
"""At once, while the load that saturates is looked for…"""
STAGE_S = 13.0
BETTER = 1.05
"""…until more at once brings no more."""
KILLED_EVERY_S = 60.0
GHOST_REQUESTS = 6
ROOT = Path(__file__).resolve().parents[3]
TRACE_RATIO = "0.05"
MOST_FAULTS = 30
"""Told in the end, those that differ in numbers alone as one."""


class Soak:
    """One run on a mesh that is up."""

    def __init__(self, mesh: Mesh, options: argparse.Namespace) -> None:
        seconds = options.minutes * 60
        self._mesh, self._options, self._seconds = mesh, options, seconds
        cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
        machine = f"{cores}, Linux {platform.release()}, Python {platform.python_version()}"
        window_s = max(seconds / WINDOWS, LEAST_WINDOW_S)
        self.result = Result(machine, options.seed, options.minutes, window_s, min(SAMPLE_S, window_s / 3))
        self._looks: list[watch.Look] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Everything up to the last look."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        await self._find_rate()
        await self._rest("before")
        if not self._stop.is_set():
            await self._soak()
        self.result.interrupted = self._stop.is_set()
        await self._rest("after")
        self.result.wrong(*await asyncio.to_thread(fuzz_checks.bugs, self._mesh))

    async def _find_rate(self) -> None:
        best = 0.0
        if self._options.rate:
            self.result.rate_per_s = self._options.rate
            await self._stage(FLIGHTS[0])  # to have everything warm
            return
        for flight in FLIGHTS:
            said = await self._stage(flight)
            rate = said["series"]["answered_per_s"]
            refused = said["series"]["requests_per_s"] - rate
            say(f"{flight} at once: {rate:.0f} requests/s answered, {refused:.0f} refused")
            if rate < BETTER * best or self._stop.is_set():
                best = max(best, rate)
                break
            best = rate
        self.result.peak_per_s, self.result.rate_per_s = round(best, 2), round(best / 2, 2)

    async def _stage(self, flight: int) -> dict[str, Any]:
        """The second half of a stage. Answers are held to what was asked for; that some are refused is the point."""
        plan = Plan(self._mesh.target, STAGE_S, (STAGE_S - 1) / 2, self._options.seed + flight, flight=flight)
        windows: list[dict[str, Any]] = [said async for said in self._clients(plan)]
        return windows[min(1, len(windows) - 1)]

    async def _clients(self, plan: Plan) -> Any:
        """Runs them; their windows as they come. Raises RuntimeError when they fail."""
        clients = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.soak.clients", cwd=ROOT,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True, limit=2**22,
        )  # fmt: skip
        assert clients.stdin is not None
        assert clients.stdout is not None
        stopping = asyncio.create_task(self._stopped(clients))
        try:
            clients.stdin.write(json.dumps(asdict(plan)).encode() + b"\n")
            async for line in clients.stdout:
                said = json.loads(line)
                if not plan.rate:
                    self.result.found(said)
                yield said
            if await clients.wait():
                raise RuntimeError(f"the clients ended with status {clients.returncode}")
        finally:
            stopping.cancel()
            with suppress(ProcessLookupError):
                clients.kill()

    async def _stopped(self, clients: asyncio.subprocess.Process) -> None:
        await self._stop.wait()
        with suppress(ProcessLookupError):
            clients.send_signal(signal.SIGTERM)

    async def _soak(self) -> None:
        begin = time.monotonic()
        rate, result = self.result.rate_per_s, self.result
        say(f"{rate:.1f} requests/s from now on; {self._options.minutes:g} minutes, windows of {result.window_s:g} s")
        plan = Plan(self._mesh.target, self._seconds, result.window_s, self._options.seed, rate=rate)
        self._looks = [await asyncio.to_thread(watch.look, self._mesh)]
        watchers = [asyncio.create_task(each) for each in (self._sample(), self._kill())]
        try:
            async for said in self._clients(plan):
                looks, self._looks = self._looks, self._looks[-1:]
                if said["last"] or len(looks) < 2:  # the last answers, behind the last arrival
                    result.count(said)
                    self._looks = looks
                    continue
                at_s = time.monotonic() - begin
                result.add(at_s, looks, said)
                say(self._told(at_s, said["series"]))
                self.write()
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self.result.sample_s)
            self._looks.append(await asyncio.to_thread(watch.look, self._mesh))

    async def _kill(self) -> None:
        """Now and then a client that is killed with its requests in flight."""
        while True:
            ghost = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.system.chaos.ghost", self._mesh.target, rules.key(mix.GHOST), mix.MODEL,
                str(GHOST_REQUESTS), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                assert ghost.stdout is not None
                async with asyncio.timeout(30):
                    if not await ghost.stdout.readline():
                        self.result.wrong("a client that was to be killed got no answer")
            except TimeoutError:
                self.result.wrong("a client that was to be killed got no answer in 30 s")
            finally:
                with suppress(ProcessLookupError):
                    ghost.kill()
                await ghost.wait()
            await asyncio.sleep(KILLED_EVERY_S)

    async def _rest(self, when: str) -> None:
        """What every process holds once nothing is in flight, queued or reserved."""
        try:
            await fuzz_checks.idle(self._mesh)
        except AssertionError as error:
            self.result.wrong(f"at rest, {when}: {error}")
        self.result.at_rest(when, await asyncio.to_thread(watch.look, self._mesh))

    def _told(self, at_s: float, load: dict[str, float | None]) -> str:
        memory = sum(each[-1] or 0.0 for of in self.result.processes.values() for each in [of["own_mb"]])
        first = " ".join(f"{door} {_ms(load, door)}" for door in ("session", "generate"))
        return (
            f"{at_s / 60:6.1f} min  {load['requests_per_s']:5.0f} requests/s  {load['in_flight']:4.0f} in flight  "
            f"first token p50, p99: {first}  {memory:5.0f} MB  {self.result.fault_count} faults"
        )

    def write(self) -> None:
        """What there is so far. A reader never sees half of it."""
        if out := self._options.out:
            fresh = out.with_suffix(".new")
            fresh.write_text(json.dumps(asdict(self.result)) + "\n")
            fresh.replace(out)


def _ms(load: dict[str, float | None], door: str) -> str:
    return "/".join(f"{load[f'first_{door}_{share}_ms'] or float('nan'):.0f}" for share in ("p50", "p99")) + " ms"


def say(text: str) -> None:
    """At once, also into a pipe."""
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, help="instead of --hours; at least 5, or trends say nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s, instead of half of what saturates")
    parser.add_argument("--out", type=Path, help="everything that was seen, as JSON; written as it goes")
    parser.add_argument("--plot", type=Path, help="a picture of it")
    options = parser.parse_args()
    options.minutes = options.minutes or options.hours * 60
    return options


def main() -> None:
    """Entry point."""
    options = arguments()
    os.environ.pop("PYTHONWARNINGS", None)
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as name:
        folder = Path(name)
        rules.write(folder / "policy")
        with Mesh(
            executors=2, batchers=2, routers=2, admissions=2, extra_policy=folder / "policy",
            env={"HEADRACE_TRACE_RATIO": TRACE_RATIO},
        ) as mesh:  # fmt: skip
            soak = Soak(mesh, options)
            try:
                asyncio.run(soak.run())
            finally:
                verdicts = soak.result.judged()
                soak.write()
                if options.plot and soak.result.at_s:
                    picture(soak.result).savefig(options.plot)
    bad = [each for each in verdicts if not each.holds]
    for each in [*(each for each in verdicts if each.holds), *bad]:
        say(f"{'ok    ' if each.holds else 'FAILED'} {each.what}: {each.said}")
    alike = Counter(re.sub(r"[\d.,]*\d", "#", fault) for fault in soak.result.faults)
    for fault, count in alike.most_common(MOST_FAULTS):
        say(f"       {count} times {fault}")
    say(f"{len(verdicts) - len(bad)} of {len(verdicts)} hold")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
