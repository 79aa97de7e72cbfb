"""Admission, router, batcher and KV-cache manager in one process: a mesh for one machine, or one per machine.

They are the services that they are apart, each with its port, its health, its metrics and its record in etcd; so
processes of either kind can serve in one mesh. But their lanes are function calls: a request costs two thirds of the
CPU, and they have half of the memory. What is lost is that each can be scaled, restarted and killed without the others.

Each leans on those that start before it, and ends before them.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from libs import process
from libs.runtime import Runtime
from services.admission import main as admission
from services.batcher import main as batcher
from services.kvcache import main as kvcache
from services.monolith.config import Settings, parse
from services.router import main as router


async def run(settings: Settings) -> None:
    """Starts one after the other; returns when all have ended."""
    async with Runtime("monolith", settings.admission.process, settings.admission.etcd) as runtime:
        services = {
            "kvcache": kvcache.run(settings.kvcache, runtime),
            "batcher": batcher.run(settings.batcher, runtime),
            "router": router.run(settings.router, runtime),
            "admission": admission.run(settings.admission, runtime),
        }
        try:
            async with asyncio.TaskGroup() as group:
                while services and not runtime.ending:
                    name = next(iter(services))
                    await _begun(group.create_task(services.pop(name), name=name), runtime.serving[name])
        finally:
            for service in services.values():
                service.close()


async def _begun(service: "asyncio.Task[None]", serving: asyncio.Event) -> None:
    """Returns when it serves, or has ended."""
    waiting = asyncio.create_task(serving.wait())
    await asyncio.wait({service, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def main() -> None:
    """Entry point."""

    def life() -> Coroutine[Any, Any, None]:
        return run(parse(os.environ))

    process.start("monolith", life)


if __name__ == "__main__":
    main()
