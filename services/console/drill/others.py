"""Whether other tenants are refused meanwhile: asked of each admission process, since each counts its own."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.client import HeadraceError
from services.console.operations import Operations

ANSWER_S = 2.0
"""For which a process is waited for: one that cannot be reached from here says nothing."""


class Others:
    """The counts of all admission processes, of tenants that are none of `ours`. To be used with `async with`.

    Args:
        door: Asks whichever process the door leads to: enough where there is one.
    """

    def __init__(
        self, door: Operations, key: str, services: Sequence[registry_pb2.ServiceInstance], ours: frozenset[str]
    ) -> None:
        self._endpoints = [each.endpoint for each in services if each.service == "admission"]
        self._door = door
        self._key = key
        self._ours = ours
        self._stack = AsyncExitStack()
        self._asked: list[Operations] = []

    async def __aenter__(self) -> Self:
        if len(self._endpoints) < 2:
            self._asked = [self._door]
        else:
            for endpoint in self._endpoints:
                self._asked.append(await self._stack.enter_async_context(Operations(endpoint, self._key)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def refused(self) -> int | None:
        """Requests of others that were refused since the processes began; None when not every process answers."""
        counts = await asyncio.gather(*(self._of(each) for each in self._asked))
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    async def _of(self, process: Operations) -> int | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                usages = await process.every("ListUsage", pb.ListUsageRequest(), "usages")
        except (HeadraceError, TimeoutError):
            return None
        return sum(int(usage.refused) for usage in usages if usage.tenant not in self._ours)
