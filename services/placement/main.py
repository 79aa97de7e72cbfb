"""The placement controller's process. Several may run; one leads."""

from headrace.registry.v1 import registry_pb2
from libs import process
from libs.process import TTL_S, MeshProcess
from libs.registry import keys
from services.placement.config import Settings
from services.placement.controller import Controller


async def run(settings: Settings) -> None:
    """Wires the controller and runs it until it is told to stop."""
    async with MeshProcess("placement", settings.process, settings.etcd) as mesh:
        await mesh.listen([])
        models = mesh.registry.mirror(keys.MODELS, registry_pb2.Model)
        executors = mesh.registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=2 * TTL_S)
        placements = mesh.registry.mirror(keys.PLACEMENTS, registry_pb2.Placement)
        election = mesh.registry.stand_for("placement", mesh.instance, TTL_S)
        controller = Controller(election, models, executors, placements, mesh.metrics, mesh.clock, settings.absence_s)
        async with models, executors, placements, election:
            mesh.tasks.spawn(controller.run(), "plan")
            await mesh.announce_stage()
            await mesh.serve()


def main() -> None:
    """Entry point."""
    process.main("placement", Settings, run)


if __name__ == "__main__":
    main()
