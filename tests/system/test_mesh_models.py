"""Many models on few executors: loaded on demand, unloaded for others, updated under load, with adapters."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc import aio

from headrace.operations.v1 import operations_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import version_of
from libs.registry import EtcdClient, Registry, keys
from tests.system.client import Client, ask, connect, metric
from tests.system.mesh import Mesh

MB = 1_000_000
MODEL = {
    "source": "simulated:", "engines": ["simulated"], "memory_bytes": 24 * MB, "context_tokens": 4096, "blocks": 512,
    "block_tokens": 16, "slots": 16, "step_tokens": 256, "capabilities": ["chat", "log_probs"],
}  # fmt: skip


def write(folder: Path, name: str, seed: int, **fields: Any) -> None:
    """A model of the simulated engine, with steps of 10 ms."""
    times = {"step_base_us": 10_000, "seed": seed, "load_us": 300_000}
    text = yaml.safe_dump({"name": name, **MODEL, "simulation": times, **fields})
    (folder / "models" / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "models").mkdir()
    for seed, name in enumerate(("red", "green", "blue"), 100):
        write(folder, name, seed, scaling={"min": 0, "max": 1, "idle": "600s"})
    write(folder, "base", 50, memory_bytes=4 * MB, adapter_memory_bytes=4 * MB, replicas=2, pinned=True)
    for name in ("legal", "medical", "poetic"):
        fields = {"name": name, "base": "base", "source": f"simulated:{name}", "memory_bytes": 2 * MB}
        (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    write(folder, "rolling", 1, memory_bytes=4 * MB, replicas=2, pinned=True)
    write(folder, "simulated", 7, memory_bytes=16 * MB, replicas=2, pinned=True)
    return folder


@pytest.fixture(scope="module")
def mesh(policy: Path) -> Iterator[Mesh]:
    """Two executors. Beside the other models, each has room for one of red, green and blue."""
    env = {"HEADRACE_MEMORY_BYTES": str(52 * MB)}
    with Mesh(engine="simulated", executors=2, routers=2, envoy=True, extra_policy=policy, env=env) as running:
        yield running


@asynccontextmanager
async def registry(mesh: Mesh) -> AsyncIterator[Registry]:
    port = mesh.snapshot().component("etcd").port
    async with Registry(EtcdClient([f"127.0.0.1:{port}"])) as made:
        yield made


async def explain(client: Client, model: str) -> Sequence[tuple[str, str, str]]:
    request = operations_pb2.ExplainRequest(request=ask(model, "Why?"))
    response = await client.operations.Explain(request, metadata=client.metadata, timeout=10)
    return [(decision.stage, decision.choice, decision.reason) for decision in response.decisions]


async def test_three_models_with_room_for_two_all_answer(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client, registry(mesh) as etcd:
        answers: dict[str, list[int]] = {}
        for name in ("red", "green", "blue", "red", "green", "blue"):
            answer = await client.generate(ask(name, "Who are you?", max_tokens=6), timeout_s=60)
            assert answers.setdefault(name, answer.token_ids) == answer.token_ids
        assert len({tuple(tokens) for tokens in answers.values()}) == 3
        placed = await etcd.get_messages(keys.PLACEMENTS, registry_pb2.Placement)
        there = {placement.model.name for placement in placed.values()} & set(answers)
        assert there == {"green", "blue"}
        said = await explain(client, "blue")
        assert any(stage == "placement" and "in the room of red" in reason for stage, _, reason in said), said
        said = await explain(client, "red")
        assert any(stage == "placement" and "to make room for" in reason for stage, _, reason in said), said


async def test_who_waits_for_a_model_is_told_so(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        call = client.inference.Generate(ask("red", "Wake up!", max_tokens=4), metadata=client.metadata, timeout=60)
        told, tokens = [], []
        while (response := await call.read()) is not aio.EOF:
            tokens += response.token_ids
            if response.waiting:
                assert not tokens
                told.append(response.waiting)
        assert len(tokens) == 4
        assert told
        assert all("red" in text for text in told)


async def test_a_deadline_holds_while_a_model_is_loaded(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        for name in ("red", "green"):  # blue goes
            await client.generate(ask(name, "First.", max_tokens=2), timeout_s=60)
        with pytest.raises(aio.AioRpcError) as raised:
            await client.generate(ask("blue", "Now!", max_tokens=2), timeout_s=0.15)
        assert raised.value.code().name == "DEADLINE_EXCEEDED"


async def test_adapters_answer_each_for_itself(mesh: Mesh) -> None:
    names = ("base", "legal", "medical", "poetic")
    async with connect(mesh.target, mesh.key) as client:
        alone = {name: (await client.generate(ask(name, "Say it your way.", max_tokens=8))).token_ids for name in names}
        assert len({tuple(tokens) for tokens in alone.values()}) == len(names)
        requests = [ask(name, "Say it your way.", max_tokens=8) for name in names * 10]
        answers = await asyncio.gather(*(client.generate(request) for request in requests))
        assert [answer.token_ids for answer in answers] == [alone[request.model] for request in requests]
        models = await client.operations.ListExecutors(
            operations_pb2.ListExecutorsRequest(), metadata=client.metadata, timeout=10
        )
        resident = {r.adapter.partition("@")[0] for e in models.executors for c in e.models for r in c.adapters}
        assert resident
        assert resident <= set(names)


async def test_an_adapter_in_memory_is_not_loaded_again(mesh: Mesh) -> None:
    """Each executor has room for two of the three adapters; asked for alone, one stays where it is."""

    async def hits() -> float:
        ports = [mesh.metrics_port(f"executor-{n}") for n in (1, 2)]
        return sum([await metric(port, "headrace_executor_adapter_asks_total", result="hit") for port in ports])

    asks, executors = 10, 2
    async with connect(mesh.target, mesh.key) as client:
        before = await hits()
        for _ in range(asks):
            await client.generate(ask("legal", "Say it your way.", max_tokens=2))
        assert before + asks - executors <= await hits() <= before + asks


async def test_a_rolling_update_costs_nobody_anything(mesh: Mesh, policy: Path) -> None:
    """Every answer under load is wholly of the old version or wholly of the new one, and none fails."""
    prompts = [f"Request number {n} of the rollout." for n in range(12)]
    tokens = 40

    async def all_of(client: Client) -> list[list[int]]:
        requests = [ask("rolling", prompt, max_tokens=tokens) for prompt in prompts]
        return [answer.token_ids for answer in await asyncio.gather(*map(client.generate, requests))]

    async with connect(mesh.target, mesh.key) as client, registry(mesh) as etcd:
        old = await all_of(client)
        stop = asyncio.Event()

        async def load(index: int) -> list[list[int]]:
            got = []
            while not stop.is_set():
                answer = await client.generate(ask("rolling", prompts[index], max_tokens=tokens))
                got.append(answer.token_ids)
            return got

        loads = [asyncio.create_task(load(index)) for index in range(len(prompts))]
        await asyncio.sleep(1)
        model = await etcd.get_messages(keys.MODELS, registry_pb2.Model)
        changed = model["rolling"]
        changed.simulation.seed = 2
        wanted = f"rolling@{version_of(changed)}"
        await etcd.put_message(keys.model("rolling"), changed)
        async with asyncio.timeout(60):
            while True:
                executors = await etcd.get_messages(keys.EXECUTORS, registry_pb2.Executor)
                copies = [copy for e in executors.values() for copy in e.models if copy.model == "rolling"]
                states = [(copy.pool, copy.state) for copy in copies]
                if states == [(wanted, registry_pb2.MODEL_STATE_READY)] * 2:
                    break
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        stop.set()
        under_load = await asyncio.gather(*loads)
        new = await all_of(client)
    assert all(a != b for a, b in zip(old, new, strict=True))
    for index, answers in enumerate(under_load):
        assert answers[0] == old[index]
        assert answers[-1] == new[index]
        for answer in answers:
            assert answer in (old[index], new[index]), "an answer mixes two versions"
