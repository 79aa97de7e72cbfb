"""Keeps one component running: starts it, watches its health, starts it again when it dies or was told to end."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from grpc import aio

from libs.turns import until_next
from services.console.mesh import health, process
from services.console.mesh.backoff import Backoff
from services.console.mesh.plan import HOST, Component
from services.console.mesh.process import Command, Process
from services.console.mesh.snapshot import ComponentSnapshot, State

STARTING_CHECK_S = 0.1
HEALTHY_CHECK_S = 1.0

log = structlog.get_logger()


class Keeper:
    """Owns the process of one component; `run` is its task.

    Args:
        component: What to run.
        command: How.
        changed: Called after each change of `snapshot`.
    """

    def __init__(self, component: Component, command: Command, changed: Callable[[], None]) -> None:
        self.component = component
        self._command = command
        self._changed = changed
        self._process: Process | None = None
        self._state: State = "waiting"
        self._detail = ""
        self._stop_asked = asyncio.Event()
        self._healthy_since: float | None = None
        self.restarts = 0
        self.was_healthy = False
        """Whether it has been healthy once."""

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    def snapshot(self) -> ComponentSnapshot:
        """For people and for the other commands."""
        running = self._process if self._process and self._process.returncode is None else None
        return ComponentSnapshot(
            name=self.component.name,
            service=self.component.service,
            state=self._state,
            port=self.component.port,
            metrics_ports=tuple(port for port, use in self.component.ports.items() if use.endswith("metrics")),
            pid=running.pid if running else None,
            started=running.started if running else None,
            restarts=self.restarts,
            detail=self._detail,
        )

    async def run(self) -> None:
        """Runs it, again and again, until `stop` is called."""
        backoff = Backoff()
        while not self._stop_asked.is_set():
            self._become("starting")
            healthy_s = await self._run_once()
            if self._stop_asked.is_set():
                return
            if healthy_s and self._asked_to_end():  # a rolling restart
                log.info("component ended", component=self.component.name, how=self._detail)
                continue
            self.restarts += 1
            delay_s = backoff.delay(healthy_s)
            log.warning("component died", component=self.component.name, how=self._detail, restart_in_s=delay_s)
            self._become("restarting", self._detail)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop_asked.wait()

    async def stop(self, patience_s: float) -> None:
        """Ends the process for good, and with it `run`. Idempotent."""
        self._stop_asked.set()
        if self._process and self._process.returncode is None:
            self._become("stopping")
            await self._process.stop(patience_s)
        self._become("stopped")

    def kill(self) -> None:
        """Ends the process at once. Idempotent; `run` starts it again unless `stop` was called."""
        if self._process:
            self._process.kill()

    async def _run_once(self) -> float:
        """Starts the process and waits for its end; returns how long it was healthy, in seconds."""
        self._healthy_since = None
        try:
            self._process = await Process.start(self._command)
        except OSError as error:
            self._detail = f"cannot be started: {error}"
            return 0.0
        if self._stop_asked.is_set():  # asked while it was being started
            await self._process.stop(0.0)
            return 0.0
        self._changed()
        watch = asyncio.create_task(self._watch(), name=f"health of {self.component.name}")
        try:
            await self._process.wait()
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
        self._detail = self._process.ending()
        return time.monotonic() - self._healthy_since if self._healthy_since else 0.0

    def _asked_to_end(self) -> bool:
        """Whether the process that has ended did so because it was told to, and not because of a fault."""
        return self._process is not None and self._process.returncode in (0, -signal.SIGTERM)

    async def _watch(self) -> None:
        async with health.channel(f"{HOST}:{self.component.port}") as channel:
            while not self._stop_asked.is_set():
                await self._check(channel)
                process.rotate(self._command.log, process.LOG_LIMIT_BYTES)
                await asyncio.sleep(until_next(HEALTHY_CHECK_S if self._state == "healthy" else STARTING_CHECK_S))

    async def _check(self, channel: aio.Channel) -> None:
        fault = await health.check(channel)
        if self._stop_asked.is_set():
            return
        if not fault:
            if self._healthy_since is None:
                self._healthy_since = time.monotonic()
            self.was_healthy = True
            self._become("healthy")
        elif self._healthy_since is None:
            self._become("starting", "" if fault == health.AWAY else fault)
        elif fault == health.NOT_SERVING:
            self._become("draining")
        else:
            self._become("unhealthy", fault)

    def _become(self, state: State, detail: str = "") -> None:
        if (state, detail) != (self._state, self._detail):
            if state != self._state:
                log.info("component is " + state, component=self.component.name)
            self._state, self._detail = state, detail
            self._changed()
