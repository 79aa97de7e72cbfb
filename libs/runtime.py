"""An operating system process: what the services in it share. Almost always there is one; see services.monolith."""

import asyncio
import signal
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

from libs.clock import SystemClock
from libs.lane.finder import StageFinder
from libs.registry.registry import Registry
from libs.rpc.channels import Channels
from libs.settings import Etcd, Process
from libs.streams.client import Dialer
from libs.streams.server import StreamServer
from libs.tasks import Tasks
from libs.telemetry.logs import setup_logs


class Member(Protocol):
    """A service in this process; libs.process.MeshProcess."""

    def end(self) -> None:
        """Tells it to end: it drains."""
        ...

    async def ended(self) -> None:
        """Returns when everything of it is closed."""
        ...


class Runtime:
    """Connections, logs and signals of one process.

    Members end the other way round than they were added, each when the one before it is gone: a service that leans on
    another one is added behind it.

    Args:
        name: Of the process, in its logs.
    """

    def __init__(self, name: str, process: Process, etcd: Etcd) -> None:
        setup_logs(name, process.instance, process.log_level)
        self.clock = SystemClock()
        self.started = time.time()
        self.tasks = Tasks()
        self.servers: dict[str, StreamServer] = {}
        """Those of this process, by the endpoint at which others reach them."""
        self.channels = Channels(process.tls_dir)
        self.dialer = Dialer(process.tls_dir, self.servers)
        self.stages = StageFinder(self.channels.connect, self.dialer, self.tasks)
        self.registry = Registry.from_settings(etcd)
        self.serving: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """By service: whether it has begun to serve."""
        self.ending = False
        """Whether a signal has come."""
        self._members: list[Member] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._stack.push_async_callback(self.registry.close)
        self._stack.push_async_callback(self.channels.close)
        self._stack.push_async_callback(self.tasks.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def add(self, member: Member) -> None:
        """From now on it is told when the process is to end."""
        self._members.append(member)
        if self.ending:
            member.end()

    def _on_signal(self) -> None:
        if not self.ending:
            self.ending = True
            self.tasks.spawn(self._end(), "end")

    async def _end(self) -> None:
        for member in reversed(self._members):
            member.end()
            await member.ended()
