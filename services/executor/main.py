"""The executor's process."""

from dataclasses import replace

from headrace.registry.v1 import registry_pb2
from libs import process
from libs.catalogue import ModelSpec, with_base
from libs.process import MeshProcess
from libs.registry import keys
from libs.runtime import Runtime
from libs.settings import SettingsInvalid
from services.executor.cache_report import CacheReport
from services.executor.config import Settings
from services.executor.engine import EngineUnavailable
from services.executor.engines import make_engine
from services.executor.host import Host
from services.executor.observe import Observer
from services.executor.reconcile import Reconciler, Wanted
from services.executor.record import executor_record


async def run(settings: Settings, runtime: Runtime) -> None:
    """Wires an executor and runs it until it is told to stop."""
    async with MeshProcess("executor", settings.process, runtime) as mesh:
        report = CacheReport(mesh.registry, mesh.instance, mesh.dialer)
        observer = Observer(mesh.metrics, mesh.clock, report.on_step)
        engine = make_engine(settings, mesh.clock, observer)
        try:
            await engine.start()
        except EngineUnavailable as error:
            raise SettingsInvalid(f"HEADRACE_ENGINE={settings.engine}: {error}") from error
        mesh.owns(engine.close)
        host = Host(mesh.instance, mesh.tracing, observer.on_step, lambda pool, why: reconciler.broken(pool, why))
        reconciler = Reconciler(
            engine,
            host,
            mesh.tasks,
            mesh.clock,
            settings.memory_bytes,
            lambda: changed(),
            observer.adapter_asked,
            observer.loaded,
        )

        await mesh.listen_as_stage(host)
        mesh.owns(report.close)
        report.start()

        def record() -> registry_pb2.Executor:
            return executor_record(settings, mesh.endpoint, mesh.started, host.draining, reconciler.statuses)

        def changed() -> None:
            report.set_copies(reconciler.statuses)
            observer.copies(reconciler.statuses)
            announcement.set(record())

        announcement = await mesh.announce(keys.executor(mesh.instance), record())
        placements = mesh.registry.mirror(keys.placements(mesh.instance), registry_pb2.Placement)
        mesh.owns(placements.close)

        def reconcile() -> None:
            reconciler.want(
                {pool: _wanted(placement, settings.step_tokens) for pool, placement in placements.items.items()}
            )

        async def follow() -> None:
            await report.follow()
            await placements.start()
            reconcile()
            placements.on_change(reconcile)

        mesh.tasks.spawn(follow(), "follow etcd")  # healthy before etcd answers: etcd may be away

        def begin_drain() -> None:
            host.draining = True

        await mesh.serve(begin_drain, lambda: host.in_flight)


def _wanted(placement: registry_pb2.Placement, step_tokens: int) -> Wanted:
    """What is to be held; with `step_tokens`, 0 for none, in place of the catalogue's."""
    spec = ModelSpec.from_proto(placement.model)
    spec = replace(spec, step_tokens=step_tokens or spec.step_tokens)
    adapters = (with_base(ModelSpec.from_proto(adapter), spec) for adapter in placement.adapters)
    return Wanted(spec, {adapter.adapter: adapter for adapter in adapters})


def main() -> None:
    """Entry point."""
    process.main("executor", Settings, run)


if __name__ == "__main__":
    main()
