"""What every service of the mesh is made of, and its life: settings → connections → state → server → drain.

A service's `main.py` reads:

    async def run(settings: Settings, runtime: Runtime) -> None:
        async with MeshProcess("router", settings.process, runtime) as mesh:
            ...                                  # state, and the tasks that keep it
            await source.start()                 # what it needs to know before it can do its job
            await mesh.listen([Service(...)])    # its ports are open, health says NOT_SERVING
            await mesh.announce(...)             # the others may come
            await mesh.serve(...)                # until the process is told to end, then drains
"""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog
import uvloop
from google.protobuf.message import Message

from headrace.registry.v1 import registry_pb2
from libs import settings as settings_module
from libs import turns
from libs.lane.server import lane_streams, stage_service
from libs.lane.stage import Stage
from libs.registry import keys
from libs.registry.announcement import Announcement
from libs.rpc.interceptors import Layer, errors
from libs.rpc.server import RpcServer, Service
from libs.runtime import Runtime
from libs.settings import Etcd, Process, SettingsInvalid
from libs.streams.server import Handler
from libs.tasks import Tasks
from libs.telemetry import names
from libs.telemetry.metrics import Metrics, serve_metrics
from libs.telemetry.tracing import VERSION, setup_tracing

log = structlog.get_logger()

TTL_S = 5
"""Of the leases that say that a process is there, in seconds."""
TICK_S = 0.05
"""Between two sweeps of what is past its deadline, in seconds."""

YOUNG_OBJECTS = 50_000
"""New objects after which the collector looks at the young ones: a request makes some hundred, and almost all of them
go by themselves."""


class HasProcess(Protocol):
    """A service's settings."""

    @property
    def process(self) -> Process:
        """What every process has."""
        ...

    @property
    def etcd(self) -> Etcd:
        """Where etcd is."""
        ...


S = TypeVar("S", bound=HasProcess)
Run = Callable[[S, Runtime], Coroutine[Any, Any, None]]
"""A service, from its settings to its end."""


def main(service: str, settings: type[S], run: Run[S]) -> None:
    """The entry of a service's process: parses the settings, runs, and exits.

    Exits with 2 and a line per fault when the settings are wrong, whoever finds that out.
    """
    start(service, lambda: alone(service, settings_module.parse(settings, os.environ), run))


async def alone(service: str, settings: S, run: Run[S]) -> None:
    """A service that shares its runtime with no other, from its settings to its end."""
    async with Runtime(service, settings.process, settings.etcd) as runtime:
        await run(settings, runtime)


def start(name: str, life: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a process; see `main`."""
    try:
        uvloop.run(life())
    except SettingsInvalid as error:
        for line in str(error).splitlines():
            print(f"headrace {name}: {line}", file=sys.stderr)
        sys.exit(2)
    except asyncio.CancelledError:
        pass  # told to stop before it served; everything is closed


class MeshProcess:
    """One service: its server, what it tells of itself, and its background tasks; closes them all, last opened first.

    Args:
        service: "admission", "router", "batcher", "kvcache", "executor" or "placement".
        runtime: The process that it runs in.
    """

    def __init__(self, service: str, process: Process, runtime: Runtime) -> None:
        self.service = service
        self.instance = process.instance
        self.process = process
        self.clock = runtime.clock
        self.started = runtime.started
        self.channels = runtime.channels
        self.dialer = runtime.dialer
        self.stages = runtime.stages
        self.registry = runtime.registry
        self.tracing = setup_tracing(
            service, process.instance, process.otlp_endpoint, process.state_dir / "traces", process.trace_ratio
        )
        self.metrics = Metrics(service, process.instance, VERSION)
        self.metrics.count_spans(self.tracing)
        self.tasks = Tasks()
        self._runtime = runtime
        self._server: RpcServer | None = None
        self._announcement: Announcement | None = None
        self._to_end, self._ended = asyncio.Event(), asyncio.Event()
        self._starting: asyncio.Task[Any] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._starting = asyncio.current_task()
        self._runtime.add(self)
        self._stack.callback(self._ended.set)
        self._stack.callback(self.tracing.shutdown)
        self._stack.push_async_callback(self.tasks.close)
        if self.process.metrics_port:
            host = self.process.listen.rpartition(":")[0]
            self._stack.enter_context(serve_metrics(self.metrics, self.process.metrics_port, host))
        self.tasks.spawn(self.metrics.watch_loop(), "loop lag")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def end(self) -> None:
        """Ends serving, or a start that may be waiting for etcd."""
        self._to_end.set()
        if self._starting is not None:
            self._starting.cancel()

    async def ended(self) -> None:
        """Returns when everything is closed."""
        await self._ended.wait()

    def owns(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Calls `closer` when the process ends, before anything that was opened earlier is closed."""
        self._stack.push_async_callback(closer)

    @property
    def endpoint(self) -> str:
        """host:port at which others reach this process; known once it listens."""
        assert self._server is not None
        host = self.process.listen.rpartition(":")[0]
        return self.process.advertise or f"{host}:{self._server.port}"

    async def listen(
        self,
        services: Sequence[Service],
        layers: Sequence[Layer] = (errors,),
        streams: Mapping[str, Handler] | None = None,
    ) -> None:
        """Opens the port. Raises OSError when it is taken.

        Args:
            services: With `layers` around each call.
            streams: The mesh's own streams, by /package.Service/Method.
        """
        self._server = RpcServer(self.process.listen, services, layers, self.process.tls_dir, streams)
        await self._server.start()
        self._stack.push_async_callback(self._server.stop)
        self._runtime.servers[self.endpoint] = self._server.streams
        log.info("listening", service=self.service, endpoint=self.endpoint)

    async def listen_as_stage(self, stage: Stage, stirred: Callable[[], None] = lambda: None) -> None:
        """Opens the port to the stages in front. Raises OSError when it is taken.

        Args:
            stirred: Called when works or cancels have come.
        """
        await self.listen([stage_service(stage)], streams=lane_streams(stage, stirred))
        self.stages.serve(self.endpoint, stage, stirred)

    async def announce(self, key: str, message: Message) -> Announcement:
        """Says in etcd that this process is there, for as long as it is. Does not wait for etcd."""
        self._announcement = await self._stack.enter_async_context(self.registry.announce(key, TTL_S))
        self._announcement.set(message)
        announcement, connected = self._announcement, self.metrics.gauge(names.PROCESS_ETCD)
        self.every(1.0, lambda: connected.set(announcement.in_touch), "watch etcd")
        return announcement

    async def announce_stage(self) -> None:
        """Announces this process as an instance of its service."""
        await self.announce(
            keys.service(self.service, self.instance),
            registry_pb2.ServiceInstance(
                service=self.service,
                instance=self.instance,
                endpoint=self.endpoint,
                start_time=self.started,
            ),
        )

    def every(self, seconds: float, action: Callable[[], None], name: str) -> None:
        """Calls `action` again and again until the process ends."""
        turns.every(self.tasks, seconds, action, name)

    def while_busy(
        self, seconds: float, action: Callable[[], None], busy: Callable[[], bool], name: str
    ) -> Callable[[], None]:
        """The same while there is something to look after; see libs.turns.while_busy."""
        return turns.while_busy(self.tasks, seconds, action, busy, name)

    async def told_to_end(self) -> None:
        """Serves until it is told to end; then says, by its health and in etcd, that this process leaves."""
        assert self._server is not None
        self._starting = None
        calm_collector()
        await self._server.set_serving(True)
        log.info("serving", service=self.service)
        self._runtime.serving[self.service].set()
        await self._to_end.wait()
        await self._server.set_serving(False)
        if self._announcement is not None:
            await self._announcement.withdraw()

    def retire(self) -> None:
        """Sends clients elsewhere for their next calls, those whose load nobody balances; the port is closed."""
        assert self._server is not None
        self._server.retire()

    async def serve(
        self, begin_drain: Callable[[], None] = lambda: None, in_flight: Callable[[], int] = lambda: 0
    ) -> None:
        """Serves until it is told to end, then drains: health, then the lease, then no new work, then the end.

        Args:
            begin_drain: From then on new work is to be handed back.
            in_flight: Works that are still to end; they get `drain_s` seconds.
        """
        await self.told_to_end()
        log.info("draining", service=self.service, in_flight=in_flight())
        begin_drain()
        deadline = self.clock.monotonic() + self.process.drain_s
        while in_flight() and self.clock.monotonic() < deadline:
            await asyncio.sleep(TICK_S)
        log.info("stopped", service=self.service, in_flight=in_flight())


def calm_collector() -> None:
    """Has the garbage collector leave alone what was there when the process began to serve.

    It is there to stay: modules, policies, tables, some 75,000 objects. Looking at all of them takes 80 ms, in which no
    token moves; without them a whole collection takes less than one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
