"""`headrace status`."""

import asyncio
import time
from dataclasses import replace

import msgspec
from rich.console import Console

from headrace.registry.v1 import registry_pb2
from libs.registry import EtcdClient, Registry, RegistryError, keys
from services.console import board
from services.console.mesh import catalogue, health
from services.console.mesh.plan import HOST
from services.console.mesh.snapshot import ComponentSnapshot, MeshSnapshot, ModelSnapshot

MEASURE_S = 0.2


def status(snapshot: MeshSnapshot, as_json: bool, console: Console) -> bool:
    """Shows how the mesh is at this moment, asked of each component itself; returns whether all is well."""
    meter = board.UsageMeter()
    meter.measure(snapshot)
    began = time.monotonic()
    snapshot = asyncio.run(_ask(snapshot))
    time.sleep(max(0.0, MEASURE_S - (time.monotonic() - began)))  # a CPU share needs a while to be one of
    well = snapshot.phase == "healthy"
    if as_json:
        console.print_json(msgspec.json.encode(snapshot).decode())
    else:
        console.print(board.render(snapshot, meter.measure(snapshot)))
    return well


async def _ask(snapshot: MeshSnapshot) -> MeshSnapshot:
    faults, models = await asyncio.gather(
        health.check_all({part.name: f"{HOST}:{part.port}" for part in snapshot.components}), _models(snapshot)
    )
    components = tuple(_merged(part, faults[part.name]) for part in snapshot.components)
    well = all(part.state == "healthy" for part in components) and all(
        model.state in ("ready", "asleep") for model in models
    )
    phase = snapshot.phase
    if phase in ("healthy", "degraded"):
        phase = "healthy" if well else "degraded"
    return replace(snapshot, components=components, models=models, phase=phase)


def _merged(part: ComponentSnapshot, fault: str) -> ComponentSnapshot:
    if not fault:
        return replace(part, state="healthy", detail="")
    return replace(part, state="unhealthy" if part.state == "healthy" else part.state, detail=part.detail or fault)


async def _models(snapshot: MeshSnapshot) -> tuple[ModelSnapshot, ...]:
    """What the executors say now; what the supervisor knew last when etcd is away."""
    async with Registry(EtcdClient([snapshot.etcd], None)) as registry:
        try:
            models = await registry.get_messages(keys.MODELS, registry_pb2.Model)
            executors = await registry.get_messages(keys.EXECUTORS, registry_pb2.Executor)
        except RegistryError:
            return snapshot.models
    wanted = catalogue.runnable((models[name] for name in sorted(models)), snapshot.engine.split(","))
    return tuple(catalogue.states(wanted, list(executors.values())))
