"""The KV-cache manager's process."""

from collections.abc import Mapping

from headrace.policy.v1 import policy_pb2
from libs import process
from libs.process import MeshProcess
from libs.registry import keys
from libs.runtime import Runtime
from services.kvcache.config import Settings
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.memory import Memory
from services.kvcache.observe import MetricsObserver
from services.kvcache.reports import Reports
from services.kvcache.service import KvCacheServicer

TICK_S = 1.0
"""Between two turns of the upkeep, in seconds."""
MEASURE_S = 5.0
"""Between two readings of the gauges, in seconds: 10 µs for each cache."""


async def run(settings: Settings, runtime: Runtime) -> None:
    """Wires the manager and runs it until it is told to stop."""
    async with MeshProcess("kvcache", settings.process, runtime) as mesh:
        memory = Memory(PrefixIndex(), Ledger(), Reports())
        observer = MetricsObserver(mesh.metrics)
        servicer = KvCacheServicer(memory, mesh.clock, mesh.tracing, observer)

        # Executors and batchers may be there before etcd is: until it is read, nothing is overcommitted.
        scheduling = mesh.registry.mirror(keys.SCHEDULING, policy_pb2.Scheduling)
        scheduling.on_change(lambda: memory.set_overcommits(overcommits(scheduling.items)))
        mesh.owns(scheduling.close)
        mesh.tasks.spawn(scheduling.start(), "read scheduling")

        await mesh.listen([servicer.service], streams=servicer.streams)

        mesh.every(TICK_S, servicer.upkeep.turn, "upkeep")
        mesh.every(MEASURE_S, lambda: observer.caches(memory), "measure")
        await mesh.announce_stage()
        await mesh.serve(servicer.close)


def overcommits(policies: Mapping[str, policy_pb2.Scheduling]) -> dict[str, float]:
    """The factor of each model that has a policy, and the default. Above 1 only where works are given what
    their answers usually need: those that get all they can need would run out of blocks they were promised."""
    factors = {}
    for name, policy in policies.items():
        factor = policy.overcommit if 0 < policy.overcommit < float("inf") else 1.0
        estimated = policy.reserve == policy_pb2.RESERVE_POLICY_ESTIMATE
        factors[name] = factor if estimated else min(factor, 1.0)
    return factors


def main() -> None:
    """Entry point."""
    process.main("kvcache", Settings, run)


if __name__ == "__main__":
    main()
