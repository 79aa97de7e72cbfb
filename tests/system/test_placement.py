"""The placement controller against a real etcd: places, forgives an absence, withdraws, hands over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from headrace.registry.v1 import registry_pb2
from libs.clock import SystemClock
from libs.registry import EtcdClient, Registry, keys
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from services.placement.controller import Controller
from tests.system.etcd import etcd

ABSENCE_S = 1.5


@asynccontextmanager
async def controller(registry: Registry, instance: str) -> AsyncIterator[None]:
    """One process's worth of placement."""
    async with AsyncExitStack() as stack:
        models = await stack.enter_async_context(registry.mirror(keys.MODELS, registry_pb2.Model))
        executors = await stack.enter_async_context(registry.mirror(keys.EXECUTORS, registry_pb2.Executor))
        placements = await stack.enter_async_context(registry.mirror(keys.PLACEMENTS, registry_pb2.Placement))
        election = await stack.enter_async_context(registry.stand_for("placement", instance, 2))
        metrics = Metrics("placement", instance, "0")
        made = Controller(election, models, executors, placements, metrics, SystemClock(), ABSENCE_S)
        tasks = Tasks()
        stack.push_async_callback(tasks.close)
        tasks.spawn(made.run(), "plan")
        yield


async def placed(registry: Registry, wanted: set[str], timeout_s: float = 8.0) -> dict[str, registry_pb2.Placement]:
    """Waits until exactly these placements stand."""
    async with asyncio.timeout(timeout_s):
        while (found := await registry.get_messages(keys.PLACEMENTS, registry_pb2.Placement)).keys() != wanted:
            await asyncio.sleep(0.05)
    return found


def executor(name: str) -> registry_pb2.Executor:
    return registry_pb2.Executor(instance=name, engine="simulated", memory_bytes=100)


async def test_models_are_placed_kept_through_an_absence_and_moved_after_it() -> None:
    async with etcd() as server, EtcdClient([server.endpoint]) as client:
        registry = Registry(client)
        await registry.put_message(keys.model("m"), registry_pb2.Model(name="m", replicas=1, memory_bytes=60))
        await registry.put_message(keys.executor("e1"), executor("e1"))
        async with controller(registry, "p1"):
            first = await placed(registry, {"e1/m"})
            await registry.put_message(keys.executor("e2"), executor("e2"))
            await registry.delete(keys.executor("e1"))
            await asyncio.sleep(ABSENCE_S / 2)
            assert (await placed(registry, {"e1/m"}))["e1/m"].epoch == first["e1/m"].epoch
            moved = await placed(registry, {"e2/m"})
            assert "free memory" in moved["e2/m"].reason


async def test_a_new_leader_goes_on_and_a_deleted_model_is_withdrawn() -> None:
    async with etcd() as server, EtcdClient([server.endpoint]) as client:
        registry = Registry(client)
        for name in ("m", "n"):
            await registry.put_message(keys.model(name), registry_pb2.Model(name=name, replicas=1, memory_bytes=40))
        await registry.put_message(keys.executor("e1"), executor("e1"))
        async with controller(registry, "p2"):
            async with controller(registry, "p1"):
                before = await placed(registry, {"e1/m", "e1/n"})
            await registry.delete(keys.model("n"))
            after = await placed(registry, {"e1/m"})
            assert after["e1/m"] == before["e1/m"], "a new leader moved what lay well"
            await registry.put_message(keys.model("o"), registry_pb2.Model(name="o", replicas=1, memory_bytes=40))
            newest = await placed(registry, {"e1/m", "e1/o"})
            assert newest["e1/o"].epoch >= before["e1/m"].epoch
