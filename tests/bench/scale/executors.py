"""Several executors in one process: a machine of two cores has no room for 64 interpreters that start.

    python -m tests.bench.scale.executors ETCD FIRST COUNT FOLDER

Each is the executor's own `run`, with an instance, ports, streams and a lease of its own; they share an event loop and
a collector of garbage. They end with the process, at SIGTERM or SIGKILL; their leases lapse.
"""

import asyncio
import os
import signal
import sys

import uvloop

from libs.process import alone
from libs.settings import parse
from services.executor.config import Settings
from services.executor.main import run


def settings(etcd: str, number: int, folder: str) -> Settings:
    """Of executor `number`, as the supervisor of a mesh would set them."""
    return parse(
        Settings,
        {
            "HEADRACE_INSTANCE": f"executor-{number}",
            "HEADRACE_LISTEN": "127.0.0.1:0",
            "HEADRACE_ETCD": etcd,
            "HEADRACE_STATE_DIR": folder,
            "HEADRACE_CACHE_DIR": folder,
            "HEADRACE_ENGINE": "simulated",
            "HEADRACE_TRACE_RATIO": "0",
            "HEADRACE_LOG_LEVEL": "warning",
        },
    )


async def host(etcd: str, first: int, count: int, folder: str) -> None:
    """Until the process is told to end."""
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(alone("executor", settings(etcd, number, folder), run), name=f"executor-{number}")
        await asyncio.sleep(0)  # each run has set a handler of its own; one signal is for all
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)


def main() -> None:
    """Entry point."""
    etcd, first, count, folder = sys.argv[1:]
    uvloop.run(host(etcd, int(first), int(count), folder))


if __name__ == "__main__":
    main()
