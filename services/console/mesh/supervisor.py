"""Starts a mesh, keeps it running, and stops it: prepare → etcd → policy → everything else → watch → stop."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog

from headrace.registry.v1 import registry_pb2
from libs.models.prepared import PrepareFailed, prepare
from libs.models.source import SourceInvalid
from libs.registry import EtcdClient, Mirror, Registry, RegistryError, keys
from libs.tasks import Tasks
from libs.telemetry.sink import OtlpSink
from services.console import policy_store
from services.console.mesh import catalogue
from services.console.mesh.commands import command
from services.console.mesh.folder import StateFolder
from services.console.mesh.keeper import Keeper
from services.console.mesh.plan import HOST, Plan, in_stop_order
from services.console.mesh.snapshot import MeshSnapshot, ModelSnapshot, Phase
from services.console.policy import DEVELOPMENT_KEY, Policy

START_TIMEOUT_S = 120.0
"""From the start of etcd to a healthy mesh; preparing models is not counted."""
GIVE_UP_AFTER = 3
"""Deaths of a component that never was healthy, after which the mesh cannot be started."""
QUIET_S = 3.0
"""A model that is ready, if not on every executor, is settled when nothing changes for this long."""
WELL = ("ready", "asleep")
"""The states of models that nobody waits for."""
PATIENCE_S = 12.0
"""On top of draining, until a component that was asked to end is killed."""

log = structlog.get_logger(__name__)


class StartFailed(Exception):
    """The mesh cannot be started.

    Args:
        text: Why, to a person.
        component: Whose log says more; may be empty.
    """

    def __init__(self, text: str, component: str = "") -> None:
        super().__init__(text)
        self.component = component


class Supervisor:
    """One mesh. Its state folder must be locked, and its ports free.

    Args:
        plan: What to run.
        policy: What to put into etcd; what else lies there of that kind is removed.
        folder: The state folder; made already.
        show: Called with every new snapshot, after it is in the folder.
    """

    def __init__(
        self, plan: Plan, policy: Policy, folder: StateFolder, show: Callable[[MeshSnapshot], None] = lambda _: None
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._show = show
        self._policy = policy
        self._models = catalogue.runnable(policy.models, plan.options.engines)
        self._preparations: dict[str, ModelSnapshot] = {}
        self._phase: Phase = "preparing"
        self._failure = StartFailed("")
        self._started = time.time()
        self._key = DEVELOPMENT_KEY if policy.accepts(DEVELOPMENT_KEY) else None
        self._news = asyncio.Event()
        self._keepers = [Keeper(part, command(part, plan, folder), self._news.set) for part in plan.components]
        self._executors: Mirror[registry_pb2.Executor] | None = None
        self._tasks = Tasks()

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Starts the mesh and keeps it until `stop` is set; then, or when that fails, stops all of it.

        `hurry` ends what takes its time to stop. Raises StartFailed, after everything has been stopped.
        """
        self._tasks.spawn(self._publish(), "publish")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            stack.push_async_callback(self._stop_all, hurry)
            life = asyncio.create_task(self._live(stack), name="mesh")
            stopped = asyncio.create_task(stop.wait(), name="stop")
            try:
                await asyncio.wait((life, stopped), return_when=asyncio.FIRST_COMPLETED)
                if life.done():
                    life.result()  # it only ever ends by an error
            except StartFailed as failure:
                log.error("start failed", reason=str(failure), component=failure.component)
                self._failure = failure
                raise
            finally:
                for task in (life, stopped):
                    task.cancel()
                await asyncio.gather(life, stopped, return_exceptions=True)

    def snapshot(self) -> MeshSnapshot:
        """The mesh as it is now."""
        return MeshSnapshot(
            supervisor=os.getpid(),
            started=self._started,
            phase=self._phase,
            engine=self._plan.options.engine,
            target=self._plan.target,
            etcd=self._plan.etcd,
            state_dir=str(self._folder.path),
            key=self._key,
            collector=self._plan.options.otlp_endpoint,
            components=tuple(keeper.snapshot() for keeper in self._keepers),
            models=() if self._phase == "stopped" else tuple(self._model_states()),
            failure=str(self._failure),
            failed_component=self._failure.component,
        )

    async def _live(self, stack: AsyncExitStack) -> None:
        await self._prepare()
        self._become("starting")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._start(stack)
        except TimeoutError:
            waiting = [keeper.component.name for keeper in self._keepers if keeper.state != "healthy"]
            models = [model.name for model in self._model_states() if model.state not in WELL]
            raise StartFailed(
                f"not healthy within {START_TIMEOUT_S:.0f} s: {', '.join([*waiting, *models])}", "".join(waiting[:1])
            ) from None
        log.info("mesh is healthy", after_s=round(time.time() - self._started, 1))
        while True:
            self._become("healthy" if self._well() else "degraded")
            await asyncio.sleep(0.2)

    def _well(self) -> bool:
        """All processes serve, and no executor is still on its way back to its models."""
        return (
            all(keeper.state == "healthy" for keeper in self._keepers)
            and all(model.state in WELL for model in self._model_states())
            and not catalogue.loading(self._known_executors())
        )

    async def _prepare(self) -> None:
        """Makes every model of the catalogue ready to be loaded, one after the other: each takes all cores."""
        for model in self._models if "openvino" in self._plan.options.engines else ():
            if model.engines and "openvino" not in model.engines:
                continue

            def progress(doing: str, share: float, name: str = model.name) -> None:
                self._preparations[name] = ModelSnapshot(name, "preparing", doing, share)
                self._news.set()

            try:
                await prepare(model.source, self._plan.options.cache_dir, progress)
            except (SourceInvalid, PrepareFailed) as error:
                raise StartFailed(f"model {model.name} cannot be prepared: {error}") from error
            self._preparations[model.name] = ModelSnapshot(model.name, "waiting", "prepared")

    async def _start(self, stack: AsyncExitStack) -> None:
        if self._plan.sink_port is not None:
            sink = OtlpSink(f"{HOST}:{self._plan.sink_port}", kept=0)  # nobody asks here: the file has them
            sink.write_to(self._folder.traces_dir / "envoy.jsonl")
            await sink.start()
            stack.push_async_callback(sink.stop)
        etcd, *others = self._keepers
        self._spawn(etcd.run(), etcd)
        await self._until(lambda: etcd.state == "healthy")

        registry = Registry(EtcdClient([self._plan.etcd], None))
        stack.push_async_callback(registry.close)
        try:
            await _forget_the_dead(registry)
            applied = await policy_store.apply(registry, self._policy, prune=True)
        except RegistryError as error:
            raise StartFailed(f"the policy cannot be written: {error}", "etcd") from error
        log.info("policy applied", written=len(applied.written), removed=len(applied.removed))

        for keeper in others:
            self._spawn(keeper.run(), keeper)
        self._executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor)
        stack.push_async_callback(self._executors.close)
        self._executors.on_change(self._news.set)
        await self._executors.start()
        await self._until(lambda: all(keeper.state == "healthy" for keeper in self._keepers))
        await self._models_settled()

    async def _models_settled(self) -> None:
        states, since = self._model_states(), time.monotonic()
        while True:
            await self._until(lambda: all(model.state in WELL for model in self._model_states()))
            if (now := self._model_states()) != states:
                states, since = now, time.monotonic()
            if catalogue.settled(self._models, self._known_executors(), self._plan.options.executors):
                return
            if time.monotonic() - since > QUIET_S:
                return
            await asyncio.sleep(0.05)

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Waits for a state; raises StartFailed when something stands in its way."""
        while not reached():
            for keeper in self._keepers:
                if keeper.restarts >= GIVE_UP_AFTER and not keeper.was_healthy:
                    how = keeper.snapshot().detail or "dies again and again"
                    raise StartFailed(f"{keeper.component.name} {how}, {keeper.restarts} times", keeper.component.name)
            for model in self._model_states():
                if model.state == "failed":
                    where = model.detail.removeprefix("on ").partition(":")[0]
                    raise StartFailed(f"model {model.name} cannot be loaded {model.detail}", where)
            await asyncio.sleep(0.05)

    async def _stop_all(self, hurry: asyncio.Event) -> None:
        self._become("stopping")
        log.info("stopping")
        options = self._plan.options
        drains = 2 if options.monoliths else 1  # its batcher may still run for another one's router
        patience_s = PATIENCE_S + drains * options.drain_s + options.notice_s
        keepers = {keeper.component.name: keeper for keeper in self._keepers}
        killer = asyncio.create_task(self._kill_when(hurry), name="hurry")
        try:
            for group in in_stop_order(self._plan.components):
                await asyncio.gather(*(keepers[component.name].stop(patience_s) for component in group))
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)

    async def _kill_when(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for keeper in self._keepers:
            keeper.kill()

    async def _end(self) -> None:
        """The last word: tasks end, and the snapshot goes, or says why the mesh did not start."""
        await self._tasks.close()
        self._phase = "failed" if str(self._failure) else "stopped"
        self._show(self.snapshot())
        if str(self._failure):
            self._folder.write(self.snapshot())
        else:
            self._folder.mesh_file.unlink(missing_ok=True)

    async def _publish(self) -> None:
        while True:
            snapshot = self.snapshot()
            self._folder.write(snapshot)
            self._show(snapshot)
            self._news.clear()
            await self._news.wait()
            await asyncio.sleep(0.05)  # many changes come together

    def _spawn(self, work: Coroutine[Any, Any, None], keeper: Keeper) -> None:
        self._tasks.spawn(work, keeper.component.name)

    def _known_executors(self) -> list[registry_pb2.Executor]:
        return list(self._executors.items.values()) if self._executors else []

    def _model_states(self) -> list[ModelSnapshot]:
        if self._executors is not None:
            return catalogue.states(self._models, self._known_executors())
        return [
            self._preparations.get(model.name, ModelSnapshot(model.name, "waiting", "for its turn"))
            for model in self._models
        ]

    def _become(self, phase: Phase) -> None:
        if phase != self._phase:
            self._phase = phase
            self._news.set()


async def _forget_the_dead(registry: Registry) -> None:
    """Removes what the processes of a mesh that was killed said of themselves: their leases may run yet."""
    for prefix in (keys.SERVICES, keys.EXECUTORS, keys.DEMAND, keys.LEADERS):
        _, entries = await registry.client.get_prefix(prefix)
        for entry in entries:
            await registry.delete(entry.key)
