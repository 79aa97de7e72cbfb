"""Runs a service as it is, with two things that a test can reach: its wall clock, and a count of its tasks.

    python -m tests.system.chaos.under_test PAGE services.router.main

PAGE is a file of eight bytes: the seconds, a native double, that `time.time` is ahead. The kernel's clock and gRPC's
own are left alone. On SIGUSR1 the process writes how many tasks it has, by what they run, to PAGE.tasks.
"""

import asyncio
import json
import mmap
import runpy
import signal
import struct
import sys
import time
from collections import Counter
from pathlib import Path

PAGE_BYTES = 8


def _move_clock(page: Path) -> None:
    with page.open("r+b") as file:
        ahead = mmap.mmap(file.fileno(), PAGE_BYTES)
    real, real_ns = time.time, time.time_ns

    def moved() -> float:
        return real() + float(struct.unpack("d", ahead[:PAGE_BYTES])[0])

    def moved_ns() -> int:
        return real_ns() + int(struct.unpack("d", ahead[:PAGE_BYTES])[0] * 1e9)

    time.time, time.time_ns = moved, moved_ns


def _count_tasks(into: Path) -> None:
    def write(*_: object) -> None:
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # no loop runs
            tasks = set()
        found = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)
        fresh = into.with_suffix(".new")
        fresh.write_text(json.dumps(found))
        fresh.replace(into)

    signal.signal(signal.SIGUSR1, write)


def main() -> None:
    """Entry point."""
    page, module = Path(sys.argv[1]), sys.argv[2]
    _move_clock(page)
    _count_tasks(page.with_suffix(".tasks"))
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
