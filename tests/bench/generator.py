"""A load generator as a process, and what others compute while it sends."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import psutil


def driven(command: Sequence[str], pids: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, float]]:
    """Runs a generator, which says "begin", says when its time is over, and then what came of it as JSON.

    Returns that, and the CPU seconds (user + system) of each of these processes in between. Raises SystemExit.
    """
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert load.stdout is not None
    if load.stdout.readline().strip() != "begin":
        raise SystemExit("the load generator did not begin")
    before = _cpu_s(pids)
    load.stdout.readline()
    after = _cpu_s(pids)
    said = json.loads(load.stdout.readline())
    load.wait()
    return said, {name: after[name] - before[name] for name in pids}


def _cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}
