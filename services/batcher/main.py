"""The batcher's process."""

import random

from libs import process
from libs.kvcache.manager import ManagerChoice
from libs.process import TICK_S, MeshProcess
from libs.runtime import Runtime
from services.batcher.config import Settings
from services.batcher.demand_report import DemandReport
from services.batcher.executor_source import ExecutorSource
from services.batcher.kvcache_memory import KvCacheMemory
from services.batcher.observe import Observer
from services.batcher.rule_source import RuleSource
from services.batcher.stage import Batcher


async def run(settings: Settings, runtime: Runtime) -> None:
    """Wires a batcher and runs it until it is told to stop."""
    async with MeshProcess("batcher", settings.process, runtime) as mesh:
        manager = ManagerChoice(mesh.registry)
        mesh.owns(manager.close)
        await manager.start()
        memory = KvCacheMemory(mesh.instance, mesh.dialer, manager.endpoint)
        mesh.owns(memory.close)
        source = ExecutorSource(mesh.registry, mesh.stages)
        rules = RuleSource(mesh.registry)
        batcher = Batcher(
            mesh.instance, memory, rules, mesh.tracing, Observer(mesh.metrics), mesh.clock, random.randrange
        )

        mesh.owns(rules.close)
        await rules.start()
        mesh.owns(source.close)
        await source.start(batcher.set_executors, batcher.set_versions)

        demand = DemandReport(mesh.registry, mesh.instance, batcher.demands, mesh.clock)
        mesh.owns(demand.close)
        await demand.start()
        batcher.starved = demand.starved
        memory.together = batcher.together

        def look_after() -> None:
            batcher.tick()
            demand.tick()

        stirred = mesh.while_busy(TICK_S, look_after, lambda: bool(batcher.in_flight), "tick")
        await mesh.listen_as_stage(batcher, stirred)
        await mesh.announce_stage()

        def begin_drain() -> None:
            batcher.draining = True

        await mesh.serve(begin_drain, lambda: batcher.in_flight)
        batcher.close()


def main() -> None:
    """Entry point."""
    process.main("batcher", Settings, run)


if __name__ == "__main__":
    main()
