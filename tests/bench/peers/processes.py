"""Processes on a core of their own: what is measured on one, engines and load generators on another."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where."""

    system: int
    load: int

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """The last two that this process may use; raises SystemExit with fewer."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise SystemExit("two cores are needed: one for what is measured, one for the load")
        return cls(usable[-1], usable[-2])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within runs there, and sizes its thread pools for one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pids: Iterable[int], core: int) -> None:
    """Puts every thread of running processes on a core; threads that they start later follow."""
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                os.sched_setaffinity(int(task), {core})
            except ProcessLookupError:
                pass


def family(pid: int) -> list[int]:
    """A process and all that it started; empty when it has ended."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time since their start, threads that have ended included; to the nanosecond, not in ticks of 10 ms."""
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid(3) returns
        except OSError:  # it has ended
            pass
    return total


def memory_mb(pids: Iterable[int]) -> float:
    """Resident memory, pages that several share counted once in all (PSS)."""
    total = 0.0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_full_info().pss / 1e6
        except psutil.NoSuchProcess:
            pass
    return total


class Process:
    """A program on a core; what it says goes into a file of its name. Owned by whoever is to call `stop`."""

    def __init__(
        self, folder: Path, name: str, command: Sequence[str | Path], core: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log, on_core(core):
            self._running = subprocess.Popen(
                [str(word) for word in command],
                cwd=folder, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pids(self) -> list[int]:
        """Its own, and its children's."""
        return family(self._running.pid)

    def check(self) -> None:
        """Raises RuntimeError, with the end of its log, if it has ended."""
        if self._running.poll() is not None:
            said = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.log.stem} ended with status {self._running.returncode}:\n{said}")

    def kill(self) -> None:
        """kill -9 to it and its children."""
        self._signal(signal.SIGKILL)
        self._running.wait()

    def stop(self) -> None:
        """Asks it to end; after PATIENCE_S it is killed."""
        self._signal(signal.SIGTERM)
        try:
            self._running.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._running.pid, number)
        except ProcessLookupError:
            pass
