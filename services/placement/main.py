"""The placement controller's process. Several may run; one leads."""

from headrace.registry.v1 import registry_pb2
from libs import process
from libs.process import TTL_S, MeshProcess
from libs.registry import keys
from libs.runtime import Runtime
from services.placement.config import Settings
from services.placement.controller import Controller, Inputs
from services.placement.values import Rules


async def run(settings: Settings, runtime: Runtime) -> None:
    """Wires the controller and runs it until it is told to stop."""
    async with MeshProcess("placement", settings.process, runtime) as mesh:
        await mesh.listen([])
        registry = mesh.registry
        inputs = Inputs(
            models=registry.mirror(keys.MODELS, registry_pb2.Model),
            executors=registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=2 * TTL_S),
            placements=registry.mirror(keys.PLACEMENTS, registry_pb2.Placement),
            demand=registry.mirror(keys.DEMAND, registry_pb2.Demand),
        )
        election = registry.stand_for("placement", mesh.instance, TTL_S)
        rules = Rules(churn_s=settings.churn_s, residency_s=settings.residency_s, backoff_s=settings.backoff_s)
        controller = Controller(registry, election, inputs, mesh.metrics, mesh.clock, settings.absence_s, rules)
        async with inputs.models, inputs.executors, inputs.placements, inputs.demand, election:
            mesh.tasks.spawn(controller.run(), "plan")
            await mesh.announce_stage()
            await mesh.serve()


def main() -> None:
    """Entry point."""
    process.main("placement", Settings, run)


if __name__ == "__main__":
    main()
