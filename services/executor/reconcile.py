"""Makes the executor hold what placement says: loads, reports, checks, drains and unloads copies."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.tasks import Tasks
from services.executor.adapter_desk import AdapterDesk
from services.executor.engine import Engine, LoadFailed, Runner, SelfCheckFailed
from services.executor.host import Copy, Host
from services.executor.state import HOLDS_MEMORY, CopyStatus, State

log = structlog.get_logger()

RETRY_S = (1.0, 60.0)
"""First and longest wait before a copy that failed to load is tried again; doubles."""
LOADS_AT_ONCE = 2
"""Copies that are loaded at the same time; others are PENDING."""
CHECK_S = 30.0
"""How often a copy is asked a question, to see that it still answers."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A copy that placement wants here."""

    spec: ModelSpec
    adapters: Mapping[str, ModelSpec] = field(default_factory=dict)
    """What may be asked for, by "name@version"."""


class Reconciler:
    """One task per placed copy carries it from PENDING to READY and, when it is no longer wanted, out.

    Args:
        memory_bytes: What all copies may use together. A copy waits until those that go have gone.
        changed: Called after each change of `statuses`.
        adapter_loads: Told of each ask for an adapter; see AdapterDesk.
        loaded: Told of each load: the model's name, and seconds.
    """

    def __init__(
        self,
        engine: Engine,
        host: Host,
        tasks: Tasks,
        clock: Clock,
        memory_bytes: int,
        changed: Callable[[], None],
        adapter_loads: Callable[[str, str, float], None] = lambda *_: None,
        loaded: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self.statuses: dict[str, CopyStatus] = {}
        self._engine = engine
        self._host = host
        self._tasks = tasks
        self._clock = clock
        self._memory_bytes = memory_bytes
        self._changed = changed
        self._adapter_loads = adapter_loads
        self._loaded = loaded
        self._wanted: dict[str, Wanted] = {}
        self._specs: dict[str, ModelSpec] = {}  # of all statuses, as they were wanted last
        self._wake: dict[str, asyncio.Event] = {}
        self._desks: dict[str, AdapterDesk] = {}
        self._room = asyncio.Condition()

    def want(self, copies: Mapping[str, Wanted]) -> None:
        """Replaces what is to be held, by pool."""
        self._wanted = dict(copies)
        self._specs.update({pool: wanted.spec for pool, wanted in copies.items()})
        for pool in dict.fromkeys((*copies, *self.statuses)):  # first come, first loaded
            if (wake := self._wake.get(pool)) is not None:
                wake.set()
                if self.statuses[pool].memory_bytes != self._specs[pool].copy_bytes:
                    self._put(pool, replace(self.statuses[pool], memory_bytes=self._specs[pool].copy_bytes))
            elif pool in copies:
                self._wake[pool] = asyncio.Event()
                self._set(pool, State.PENDING, "")
                self._tasks.spawn(self._hold(pool), f"hold {pool}")
        for pool, desk in self._desks.items():
            if (wanted := copies.get(pool)) is not None:
                desk.know(wanted.adapters, wanted.spec.adapter_memory_bytes)

    def broken(self, pool: str, reason: str) -> None:
        """The runner of a copy died: it is loaded again at once."""
        log.error("engine died", pool=pool, reason=reason)
        if (status := self.statuses.get(pool)) is not None and status.state is State.READY:
            self._set(pool, State.LOADING, f"the engine died: {reason}")
        if (wake := self._wake.get(pool)) is not None:
            wake.set()

    @property
    def used_bytes(self) -> int:
        """Memory of the copies that hold some."""
        return sum(status.memory_bytes for status in self.statuses.values() if status.state in HOLDS_MEMORY)

    async def _hold(self, pool: str) -> None:
        """From the first placement of a copy to the end of the last."""
        wake, retry, why = self._wake[pool], RETRY_S[0], ""
        while pool in self._wanted:
            if not await self._enter(pool, why):
                continue
            try:
                copy, runner = await self._load(pool)
            except Exception as error:  # a bug in an engine must not end the only task that can load the copy
                known = isinstance(error, LoadFailed)
                reason = str(error) if known else f"{type(error).__name__} in the engine"
                log.error("copy failed to load", pool=pool, reason=reason, retry_s=retry, exc_info=not known)
                self._host.drop(pool)
                self._set(pool, State.FAILED, reason, attempts=self.statuses[pool].attempts + 1)
                await self._tell_room()
                await _wait(wake, retry)
                retry = min(retry * 2, RETRY_S[1])
                continue
            retry = RETRY_S[0]
            why = await self._keep(pool, copy, wake)
            await self._unload(pool, copy, runner, why)
            if why:
                self._set(pool, State.PENDING, why)
        del self._wake[pool], self._specs[pool], self.statuses[pool]
        self._changed()
        await self._tell_room()
        log.info("copy gone", pool=pool)
        if pool in self._wanted:  # wanted again while the last lines ran
            self.want(self._wanted)

    async def _enter(self, pool: str, why: str) -> bool:
        """Waits until a copy may be loaded, and counts its memory from then on; False when it is not wanted
        any more. A copy that can never fit is not waited for: it fails."""
        async with self._room:
            while (wanted := self._wanted.get(pool)) is not None:
                needed, free = wanted.spec.copy_bytes, self._memory_bytes - self.used_bytes
                loading = sum(status.state is State.LOADING for status in self.statuses.values())
                if loading < LOADS_AT_ONCE and (needed <= free or needed > self._memory_bytes):
                    self._set(pool, State.LOADING, why, attempts=self.statuses[pool].attempts)
                    return True
                waits = f"{loading} copies are being loaded"
                if needed > free:
                    waits = f"{needed} bytes are needed, {free} are free"
                if self.statuses[pool].reason != waits:
                    self._set(pool, State.PENDING, waits, attempts=self.statuses[pool].attempts)
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._room.wait()
        return False

    async def _load(self, pool: str) -> tuple[Copy, Runner]:
        spec = self._specs[pool]
        if spec.copy_bytes > self._memory_bytes:
            raise LoadFailed(f"it needs {spec.copy_bytes} bytes, and this executor has {self._memory_bytes}")
        started = self._clock.monotonic()
        copy = self._host.host(pool)
        runner = await self._engine.load(spec, copy)
        if copy.broken:  # it died before it could be shown
            await runner.close()
            raise LoadFailed(f"the engine died: {copy.broken}")
        desk = AdapterDesk(
            runner, spec.adapter_memory_bytes, spec.name, self._tasks, self._clock, self._adapter_loads, self._changed
        )
        desk.know(self._wanted[pool].adapters if pool in self._wanted else {}, spec.adapter_memory_bytes)
        self._desks[pool] = desk
        copy.runner, copy.adapters = runner, desk
        took, capacity = self._clock.monotonic() - started, runner.capacity
        self._loaded(spec.name, took)
        self._set(pool, State.READY, "", capacity=capacity, adapters=desk.residents)
        log.info("copy ready", pool=pool, slots=capacity.slots, blocks=capacity.blocks, seconds=round(took, 3))
        await self._tell_room()
        return copy, runner

    async def _keep(self, pool: str, copy: Copy, wake: asyncio.Event) -> str:
        """Until the copy is to go: "" when it is not wanted, else why it cannot stay."""
        due = self._clock.monotonic() + CHECK_S
        while pool in self._wanted and copy.runner is not None:
            if await _wait(wake, max(due - self._clock.monotonic(), 0.0)):
                continue  # something else changed: the check stays due
            due = self._clock.monotonic() + CHECK_S
            if copy.runner is not None and copy.runner.capabilities.paid:
                continue
            try:
                await copy.runner.self_check()
            except Exception as error:  # whatever is wrong: a copy that cannot be asked is no copy
                known = isinstance(error, SelfCheckFailed)
                reason = str(error) if known else f"{type(error).__name__} in the engine"
                if copy.runner is not None and pool in self._wanted:
                    log.error("copy does not answer", pool=pool, reason=reason, exc_info=not known)
                    return f"it did not answer: {reason}"
        return f"the engine died: {copy.broken}" if copy.broken else ""

    async def _unload(self, pool: str, copy: Copy, runner: Runner, why: str) -> None:
        if why:
            self._set(pool, State.LOADING, why)  # it keeps its memory until the engine has let go of it
        else:
            copy.draining = True
            self._set(pool, State.DRAINING, "")
            deadline = self._clock.monotonic() + self._specs[pool].drain_s
            while copy.works and copy.runner is not None and self._clock.monotonic() < deadline:
                await asyncio.sleep(0.05)  # works have no event of their own
        self._desks.pop(pool).close()
        self._host.drop(pool)
        try:
            await runner.close()
        except Exception:  # a bug in an engine must not end the only task that can load the copy
            log.exception("the engine failed to unload a copy", pool=pool)
        log.info("copy unloaded", pool=pool)

    def _set(self, pool: str, state: State, reason: str, **more: object) -> None:
        spec = self._specs[pool]
        status = CopyStatus(spec.name, spec.version, state, reason, self._clock.now(), spec.copy_bytes)
        self._put(pool, replace(status, **more))  # type: ignore[arg-type]

    def _put(self, pool: str, status: CopyStatus) -> None:
        self.statuses[pool] = status
        self._changed()

    async def _tell_room(self) -> None:
        """Those that wait for memory, or for their turn, look again."""
        async with self._room:
            self._room.notify_all()


async def _wait(wake: asyncio.Event, timeout_s: float) -> bool:
    """Until something changes, or the time is up; whether something changed."""
    try:
        async with asyncio.timeout(timeout_s):  # `wait_for` of Python 3.11 can lose a cancellation
            await wake.wait()
    except TimeoutError:
        return False
    wake.clear()
    return True
