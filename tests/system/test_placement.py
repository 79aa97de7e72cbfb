"""The placement controller against a real etcd: places, forgives an absence, hands over, is not fooled."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from google.protobuf.duration_pb2 import Duration

from headrace.registry.v1 import registry_pb2 as pb
from libs.catalogue import ModelSpec
from libs.clock import SystemClock
from libs.registry import EtcdClient, Registry, keys
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from services.placement.controller import Controller, Inputs
from services.placement.values import Rules
from tests.system.etcd import etcd

ABSENCE_S = 1.5
RULES = Rules(residency_s=0.5)


@asynccontextmanager
async def controller(registry: Registry, instance: str, rules: Rules = RULES) -> AsyncIterator[None]:
    """One process's worth of placement."""
    async with AsyncExitStack() as stack:
        inputs = Inputs(
            await stack.enter_async_context(registry.mirror(keys.MODELS, pb.Model)),
            await stack.enter_async_context(registry.mirror(keys.EXECUTORS, pb.Executor)),
            await stack.enter_async_context(registry.mirror(keys.PLACEMENTS, pb.Placement)),
            await stack.enter_async_context(registry.mirror(keys.DEMAND, pb.Demand)),
        )
        election = await stack.enter_async_context(registry.stand_for("placement", instance, 2))
        metrics = Metrics("placement", instance, "0")
        made = Controller(registry, election, inputs, metrics, SystemClock(), ABSENCE_S, rules)
        tasks = Tasks()
        stack.push_async_callback(tasks.close)
        tasks.spawn(made.run(), "plan")
        yield


@asynccontextmanager
async def empty_registry() -> AsyncIterator[Registry]:
    async with etcd() as server, EtcdClient([server.endpoint]) as client:
        yield Registry(client)


async def placed(registry: Registry, wanted: set[str], timeout_s: float = 8.0) -> dict[str, pb.Placement]:
    """Waits until exactly these placements stand, as "executor/model"."""
    found: dict[str, pb.Placement] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while found.keys() != wanted:
                await asyncio.sleep(0.05)
                stored = await registry.get_messages(keys.PLACEMENTS, pb.Placement)
                assert all(key == f"{one.executor}/{one.pool}" for key, one in stored.items())
                found = {f"{one.executor}/{one.model.name}": one for one in stored.values()}
    except TimeoutError as error:
        raise AssertionError(f"{sorted(found)} instead of {sorted(wanted)}") from error
    return found


async def lacking(registry: Registry, model: str, words: str) -> pb.Unplaced:
    """Waits until a model lacks copies for a reason with these words."""
    async with asyncio.timeout(8):
        while True:
            lack = await registry.get_message(keys.unplaced(model), pb.Unplaced)
            if lack is not None and words in lack.reason:
                return lack
            await asyncio.sleep(0.05)


async def want(registry: Registry, *models: pb.Model) -> None:
    for model in models:
        await registry.put_message(keys.model(model.name), model)


async def report(registry: Registry, name: str, copies: Iterable[pb.ExecutorModel] = (), memory: int = 100) -> None:
    record = pb.Executor(instance=name, engine="simulated", memory_bytes=memory, models=copies)
    await registry.put_message(keys.executor(name), record)


def copy_of(model: pb.Model, state: "pb.ModelState.ValueType", reason: str = "") -> pb.ExecutorModel:
    spec = ModelSpec.from_proto(model)
    return pb.ExecutorModel(
        model=model.name, pool=spec.pool, state=state, reason=reason, since=time.time(), memory_bytes=spec.copy_bytes
    )


def on_demand(name: str) -> pb.Model:
    return pb.Model(name=name, memory_bytes=60, slots=4, scaling=pb.Scaling(max=1, idle=Duration(seconds=600)))


async def test_models_are_placed_kept_through_an_absence_and_moved_after_it() -> None:
    async with empty_registry() as registry:
        await want(registry, pb.Model(name="m", replicas=1, memory_bytes=60))
        await report(registry, "e1")
        async with controller(registry, "p1"):
            first = await placed(registry, {"e1/m"})
            await report(registry, "e2")
            await registry.delete(keys.executor("e1"))
            await asyncio.sleep(ABSENCE_S / 2)
            assert (await placed(registry, {"e1/m"}))["e1/m"].epoch == first["e1/m"].epoch
            moved = await placed(registry, {"e2/m"})
            assert "free memory" in moved["e2/m"].reason
            assert moved["e2/m"].placed_at > first["e1/m"].placed_at


async def test_a_new_leader_goes_on_and_a_deleted_model_is_withdrawn() -> None:
    async with empty_registry() as registry:
        await want(registry, *(pb.Model(name=name, replicas=1, memory_bytes=40) for name in ("m", "n")))
        await report(registry, "e1")
        async with controller(registry, "p2"):
            async with controller(registry, "p1"):
                before = await placed(registry, {"e1/m", "e1/n"})
            await registry.delete(keys.model("n"))
            after = await placed(registry, {"e1/m"})
            assert after["e1/m"] == before["e1/m"], "a new leader moved what lay well"
            await want(registry, pb.Model(name="o", replicas=1, memory_bytes=40))
            newest = await placed(registry, {"e1/m", "e1/o"})
            assert newest["e1/o"].epoch >= before["e1/m"].epoch


async def test_what_somebody_else_changes_is_put_right() -> None:
    async with empty_registry() as registry, controller(registry, "p1"):
        await want(registry, pb.Model(name="m", replicas=1, memory_bytes=40))
        await report(registry, "e1")
        stands = await placed(registry, {"e1/m"})
        await registry.delete(keys.placement("e1", stands["e1/m"].pool))
        await placed(registry, {"e1/m"})
        await registry.put_message(keys.placement("e9", "x@1"), pb.Placement(executor="e9", pool="x@1"))
        await registry.client.put(keys.placement("e9", "y@1"), b"not JSON")
        await registry.put_message(keys.placement("e1", "m"), pb.Placement(executor="e1", model=pb.Model(name="m")))
        async with asyncio.timeout(8):
            while len((await registry.client.get_prefix(keys.PLACEMENTS))[1]) != 1:
                await asyncio.sleep(0.05)


async def test_adapters_are_carried_along_and_place_nothing() -> None:
    async with empty_registry() as registry, controller(registry, "p1"):
        await want(registry, pb.Model(name="m", replicas=1, memory_bytes=40))
        await report(registry, "e1")
        first = await placed(registry, {"e1/m"})
        await want(registry, pb.Model(name="tuned", base="m", source="folder"))
        async with asyncio.timeout(8):
            while not (now := (await placed(registry, {"e1/m"}))["e1/m"]).adapters:
                await asyncio.sleep(0.05)
        assert [adapter.name for adapter in now.adapters] == ["tuned"]
        assert (now.pool, now.placed_at) == (first["e1/m"].pool, first["e1/m"].placed_at), "the copy stays as it is"


async def test_a_cold_model_is_loaded_when_asked_for_and_the_idle_one_makes_room() -> None:
    models = [on_demand(name) for name in ("m1", "m2")]
    async with empty_registry() as registry, controller(registry, "p1"):
        await want(registry, *models)
        await report(registry, "e1")
        cold = await lacking(registry, "m1", "loaded on demand")
        assert not cold.hopeless
        demand = pb.ModelDemand(model="m1", requests=1, waiting=1, last_request=time.time())
        await registry.put_message(keys.demand("b1"), pb.Demand(instance="b1", models=[demand]))
        await placed(registry, {"e1/m1"})
        await report(registry, "e1", [copy_of(models[0], pb.MODEL_STATE_READY)])
        await registry.delete(keys.demand("b1"))
        demand = pb.ModelDemand(model="m2", requests=1, waiting=1, last_request=time.time())
        await registry.put_message(keys.demand("b2"), pb.Demand(instance="b2", models=[demand]))
        stands = await placed(registry, {"e1/m2"})
        assert "in the room of m1 (least recently used" in stands["e1/m2"].reason
        gone = await lacking(registry, "m1", "unloaded from e1 to make room for m2")
        await asyncio.sleep(1.5)
        assert await lacking(registry, "m1", "unloaded from e1 to make room for m2") == gone, "it says so from then on"


async def test_a_copy_that_cannot_be_loaded_goes_elsewhere_and_the_failure_is_remembered() -> None:
    model = pb.Model(name="m", replicas=1, memory_bytes=40)
    broken = [copy_of(model, pb.MODEL_STATE_FAILED, "no such file")]
    async with empty_registry() as registry:
        await want(registry, model)
        await report(registry, "e1")
        async with controller(registry, "p1"):
            await placed(registry, {"e1/m"})
            await report(registry, "e2")
            await report(registry, "e1", broken)
            assert "could not be loaded on e1" in (await placed(registry, {"e2/m"}))["e2/m"].reason
            await report(registry, "e1")
            failure = await registry.get_message(keys.failure("e1", broken[0].pool), pb.LoadFailure)
            assert failure is not None
            assert (failure.reason, failure.attempts) == ("no such file", 1)
        async with controller(registry, "p2"):
            broken[0].since = time.time()
            await report(registry, "e2", broken)
            assert "could not be loaded on e1, e2" in (await lacking(registry, "m", "could not")).reason
