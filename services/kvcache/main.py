"""The KV-cache manager's process."""

from headrace.kvcache.v1 import kvcache_pb2_grpc
from libs import process
from libs.process import MeshProcess
from libs.rpc.server import Service
from services.kvcache.config import Settings
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.memory import Memory
from services.kvcache.observe import MetricsObserver
from services.kvcache.reports import Reports
from services.kvcache.service import KvCacheServicer

MEASURE_S = 1.0
"""Between two readings of the gauges, in seconds."""


async def run(settings: Settings) -> None:
    """Wires the manager and runs it until it is told to stop."""
    async with MeshProcess("kvcache", settings.process, settings.etcd) as mesh:
        memory = Memory(PrefixIndex(), Ledger(), Reports())
        observer = MetricsObserver(mesh.metrics)
        servicer = KvCacheServicer(memory, mesh.clock, mesh.tracing, observer)
        name = "headrace.kvcache.v1.KvCacheService"
        await mesh.listen([Service(name, kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server, servicer)])

        def measure() -> None:
            servicer.expire()
            observer.caches(memory)

        mesh.every(MEASURE_S, measure, "measure")
        await mesh.announce_stage()
        await mesh.serve(servicer.close)


def main() -> None:
    """Entry point."""
    process.main("kvcache", Settings, run)


if __name__ == "__main__":
    main()
