"""Runs a sweep: every policy at every load, in processes beside each other.

Each process reads the trace once and makes the arrivals of a load when it needs them. It tells how far it is through
shared memory, and ends at its next sample when it is told to stop: an interrupt leaves no process behind.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from services.batcher.policies import NAMES
from services.simulator.measure import Slo
from services.simulator.mix import Mix, arrivals
from services.simulator.points import Load, Point, point
from services.simulator.trace import Trace, read
from services.simulator.values import Setup
from services.simulator.world import simulate

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to run."""

    trace: Path
    policies: Sequence[str]
    loads: Sequence[tuple[str, Mix]]
    """Name and mix of each load."""
    setup: Setup
    """Its `scheduling` is each policy's own."""
    slo: Slo
    jobs: int

    @property
    def tasks(self) -> list[tuple[str, int]]:
        """Policy and index of the load, the heaviest loads first: they take longest."""

        def weight(load: int) -> float:
            mix = self.loads[load][1]
            return (mix.requests_per_s or mix.rate) * max(mix.copies, 1)

        heaviest = sorted(range(len(self.loads)), key=weight, reverse=True)
        return [(policy, load) for load, policy in product(heaviest, self.policies)]


Progress = Callable[[Sequence[float], int], None]
"""Called with how far each task is, from 0 to 1, and how many are done."""


class Stopped(Exception):
    """A process was told to stop."""


def run(sweep: Sweep, progress: Progress) -> list[Point]:
    """The points by policy, then load, as they were asked for. Raises what a simulation raised."""
    tasks = sweep.tasks
    context = multiprocessing.get_context("spawn")
    shares = context.Array("d", len(tasks), lock=False)
    stop = context.Value("b", 0, lock=False)
    found: dict[tuple[str, int], Point] = {}
    with (
        ProcessPoolExecutor(
            min(sweep.jobs, len(tasks)), context, initializer=_begin, initargs=(sweep, shares, stop)
        ) as pool,
        _told(stop),
    ):
        open_ones: dict[Future[Point], tuple[str, int]] = {
            pool.submit(_simulate, number, *task): task for number, task in enumerate(tasks)
        }
        try:
            while open_ones:
                done, _ = wait(open_ones, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    found[open_ones.pop(future)] = future.result()
                progress(list(shares), len(found))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[policy, load] for policy in sweep.policies for load in range(len(sweep.loads))]


@contextmanager
def _told(stop: Any) -> Iterator[None]:
    """Tells the processes to stop when what is inside fails."""
    try:
        yield
    except BaseException:
        stop.value = 1
        raise


class _Process:
    """What a process of the pool knows: set by _begin."""

    sweep: Sweep
    trace: Trace
    shares: Any
    stop: Any


def _begin(sweep: Sweep, shares: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and tells us
    _Process.sweep, _Process.shares, _Process.stop = sweep, shares, stop
    _Process.trace = read(sweep.trace)


def _simulate(number: int, policy: str, load: int) -> Point:
    sweep, shares, stop = _Process.sweep, _Process.shares, _Process.stop
    name, mix = sweep.loads[load]
    setup = with_policy(sweep.setup, policy)
    coming = arrivals(_Process.trace, mix, setup.block_tokens)

    def progress(_: float, ended: int) -> None:
        shares[number] = ended / len(coming)
        if stop.value:
            raise Stopped

    result = simulate(setup, coming, progress)
    shares[number] = 1.0
    length = coming[-1].at - coming[0].at
    rate = len(coming) / length if length else 0.0
    return point(policy, Load(name, rate, len(coming)), setup, sweep.slo, result)


def with_policy(setup: Setup, policy: str) -> Setup:
    """A setup whose batcher dispatches by the policy of that name; its other rules stay."""
    return replace(setup, scheduling=replace(setup.scheduling, dispatch=NAMES[policy]))
