"""The executor's process."""

from headrace.registry.v1 import registry_pb2
from libs import process
from libs.catalogue import ModelSpec
from libs.lane.server import lane_service
from libs.process import MeshProcess
from libs.registry import keys
from services.executor.cache_report import CacheReport
from services.executor.config import Settings
from services.executor.engines import make_engine
from services.executor.host import Host
from services.executor.observe import Observer
from services.executor.reconcile import Reconciler
from services.executor.record import executor_record


async def run(settings: Settings) -> None:
    """Wires an executor and runs it until it is told to stop."""
    async with MeshProcess("executor", settings.process, settings.etcd) as mesh:
        engine = make_engine(settings, mesh.clock)
        mesh.owns(engine.close)
        report = CacheReport(mesh.registry, mesh.instance, mesh.channels.connect)
        observer = Observer(mesh.metrics, mesh.clock, report.on_step)
        host = Host(mesh.instance, mesh.tracing, observer.on_step, lambda model, why: reconciler.broken(model, why))
        reconciler = Reconciler(engine, host, mesh.tasks, lambda: changed())

        await mesh.listen([lane_service(host)])
        mesh.owns(report.close)
        report.start()

        def record() -> registry_pb2.Executor:
            return executor_record(settings, mesh.endpoint, mesh.started, host.draining, reconciler.statuses)

        def changed() -> None:
            report.set_models(reconciler.statuses)
            observer.capacities(reconciler.statuses)
            mesh.tasks.spawn(announcement.set(record()), "announce")

        announcement = await mesh.announce(keys.executor(mesh.instance), record())
        placements = mesh.registry.mirror(keys.placements(mesh.instance), registry_pb2.Placement)
        mesh.owns(placements.close)

        def reconcile() -> None:
            reconciler.want({name: ModelSpec.from_proto(p.model) for name, p in placements.items.items()})

        async def follow() -> None:
            await report.follow()
            await placements.start()
            reconcile()
            placements.on_change(reconcile)

        mesh.tasks.spawn(follow(), "follow etcd")  # healthy before etcd answers: etcd may be away

        def begin_drain() -> None:
            host.draining = True

        await mesh.serve(begin_drain, lambda: host.in_flight)


def main() -> None:
    """Entry point."""
    process.main("executor", Settings, run)


if __name__ == "__main__":
    main()
