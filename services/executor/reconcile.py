"""Makes the executor hold what placement says: loads, reports, drains and unloads models."""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from libs.catalogue import ModelSpec
from libs.tasks import Tasks
from services.executor.engine import Engine, LoadFailed, Runner
from services.executor.host import Host
from services.executor.state import ModelStatus, State

log = structlog.get_logger()

DRAIN_S = 30.0
"""Works of a model that is to be unloaded get this long to end; then they are handed back."""
RETRY_S = (1.0, 60.0)
"""First and longest wait before a model that failed to load is tried again; doubles."""


class Reconciler:
    """One task per placed model carries it from LOADING to READY and, when it is no longer wanted, out.

    Args:
        changed: Called after each change of `statuses`.
    """

    def __init__(self, engine: Engine, host: Host, tasks: Tasks, changed: Callable[[], None]) -> None:
        self.statuses: dict[str, ModelStatus] = {}
        self._engine = engine
        self._host = host
        self._tasks = tasks
        self._changed = changed
        self._wanted: dict[str, ModelSpec] = {}
        self._wake: dict[str, asyncio.Event] = {}

    def want(self, models: Mapping[str, ModelSpec]) -> None:
        """Replaces what is to be held."""
        self._wanted = dict(models)
        for model in {*models, *self.statuses}:
            if (wake := self._wake.get(model)) is not None:
                wake.set()
            elif model in models:
                self._wake[model] = asyncio.Event()
                self._tasks.spawn(self._hold(model), f"hold {model}")

    def broken(self, model: str, reason: str) -> None:
        """The runner of a model died: it is loaded again at once."""
        log.error("engine died", model=model, reason=reason)
        self._set(model, State.LOADING, f"the engine died: {reason}")
        if (wake := self._wake.get(model)) is not None:
            wake.set()

    async def _hold(self, model: str) -> None:
        """From the first placement of a model to the end of the last."""
        wake = self._wake[model]
        retry = RETRY_S[0]
        while (spec := self._wanted.get(model)) is not None:
            try:
                runner = await self._load(spec)
            except Exception as error:  # a bug in an engine must not end the only task that can load the model
                known = isinstance(error, LoadFailed)
                reason = str(error) if known else f"{type(error).__name__} in the engine"
                log.error("model failed to load", model=model, reason=reason, retry_s=retry, exc_info=not known)
                self._host.drop(model)
                self._set(model, State.FAILED, reason)
                await _wait(wake, retry)
                retry = min(retry * 2, RETRY_S[1])
                continue
            retry = RETRY_S[0]
            while self._wanted.get(model) == spec and self._host.models[model].runner is not None:
                await _wait(wake, None)
            await self._unload(model, runner)
        del self._wake[model]
        self.statuses.pop(model, None)
        self._changed()
        if model in self._wanted:  # wanted again while the last lines ran
            self.want(self._wanted)

    async def _load(self, spec: ModelSpec) -> Runner:
        self._set(spec.name, State.LOADING, "")
        hosted = self._host.host(spec.name)
        runner = await self._engine.load(spec, hosted)
        if hosted.broken:  # it died before it could be shown
            await runner.close()
            raise LoadFailed(f"the engine died: {hosted.broken}")
        hosted.runner = runner
        capacity = runner.capacity
        self.statuses[spec.name] = ModelStatus(
            State.READY, "", capacity.slots, capacity.blocks, capacity.block_tokens, capacity.exactness
        )
        log.info("model ready", model=spec.name, slots=capacity.slots, blocks=capacity.blocks)
        self._changed()
        return runner

    async def _unload(self, model: str, runner: Runner) -> None:
        hosted = self._host.models[model]
        if hosted.runner is not None:
            hosted.draining = True
            self._set(model, State.DRAINING, "")
            deadline = asyncio.get_running_loop().time() + DRAIN_S
            while hosted.works and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.05)  # works have no event of their own
        self._host.drop(model)
        await runner.close()
        log.info("model unloaded", model=model)

    def _set(self, model: str, state: State, reason: str) -> None:
        self.statuses[model] = ModelStatus(state, reason)
        self._changed()


async def _wait(wake: asyncio.Event, timeout_s: float | None) -> None:
    """Until something changes, or the time is up."""
    try:
        await asyncio.wait_for(wake.wait(), timeout_s)
    except TimeoutError:
        pass
    wake.clear()
