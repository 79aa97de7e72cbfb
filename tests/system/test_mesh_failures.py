"""What dies, and what does not: every service in turn is killed under streaming requests."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence

import pytest
from grpc import aio

from libs.client import GenerateOptions, HeadraceClient
from tests.system.client import Answer, Client, ask, connect, metric
from tests.system.mesh import Mesh

MODEL = "simulated"
BACK_S = 10.0
"""Within this time after a kill, the mesh answers new requests again."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="simulated", executors=2, envoy=True) as running:
        yield running


def requests(count: int, tokens: int = 150) -> list:  # type: ignore[type-arg]
    return [ask(MODEL, f"An answer that must survive, number {i}.", max_tokens=tokens) for i in range(count)]


async def undisturbed(client: Client, count: int) -> Sequence[list[int]]:
    return [a.token_ids for a in await asyncio.gather(*(client.generate(r) for r in requests(count)))]


async def begun(answers: Sequence[Answer]) -> None:
    async with asyncio.timeout(20):
        while not all(len(answer.token_ids) > 5 for answer in answers):
            await asyncio.sleep(0.005)


async def answers_again(mesh: Mesh, since: float) -> float:
    """Seconds from `since` until a new request is answered."""
    while True:
        try:
            async with connect(mesh.target, mesh.key) as client:
                await client.generate(ask(MODEL, "are you there?", max_tokens=2), timeout_s=2)
                return time.monotonic() - since
        except aio.AioRpcError:
            assert time.monotonic() - since < 30, "the mesh did not come back"
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("component", ["executor-1", "batcher-1", "router-1", "kvcache-1", "placement-1", "etcd"])
async def test_a_killed_process_costs_no_running_request(mesh: Mesh, component: str) -> None:
    mesh.wait_healthy()
    async with connect(mesh.target, mesh.key) as client:
        expected = await undisturbed(client, 8)
        answers = [Answer() for _ in range(8)]
        tasks = [asyncio.create_task(client.generate(r, into=a)) for r, a in zip(requests(8), answers, strict=True)]
        await begun(answers)
        killed = time.monotonic()
        mesh.kill(component)
        back = await answers_again(mesh, killed)
        await asyncio.gather(*tasks)
        assert [answer.token_ids for answer in answers] == expected
        assert back < BACK_S, f"new requests were answered only {back:.1f} s after {component} was killed"


@pytest.mark.parametrize("multiplex", [False, True], ids=["generate", "session"])
@pytest.mark.parametrize("component", ["admission-1", "envoy"])
async def test_a_killed_door_costs_users_of_the_sdk_no_token(mesh: Mesh, component: str, multiplex: bool) -> None:
    """The streams break; the SDK sends the requests again with the tokens it has."""
    mesh.wait_healthy()
    options = GenerateOptions(max_tokens=150, temperature=0, ignore_end=True, output="both")
    prompts = [request.prompt for request in requests(8)]
    async with HeadraceClient(mesh.target, api_key=mesh.key, multiplex=multiplex, timeout=60) as client:
        expected = await asyncio.gather(*(client.complete(MODEL, prompt=p, options=options) for p in prompts))
        answers = [client.generate(MODEL, prompt=prompt, options=options) for prompt in prompts]
        readers = [asyncio.create_task(answer.complete()) for answer in answers]
        await asyncio.sleep(0.6)
        assert not any(reader.done() for reader in readers)
        killed = time.monotonic()
        mesh.kill(component)
        back = await answers_again(mesh, killed)
        completions = await asyncio.gather(*readers)
        assert all(answer.resent for answer in answers)
        assert [c.token_ids for c in completions] == [c.token_ids for c in expected]
        assert [c.text for c in completions] == [c.text for c in expected]
        assert back < BACK_S, f"new requests were answered only {back:.1f} s after {component} was killed"


async def test_requests_go_on_while_etcd_is_stopped(mesh: Mesh) -> None:
    """etcd frozen for a minute: every lease lapses meanwhile, and nobody minds."""
    mesh.wait_healthy()
    etcd = mesh.pid("etcd")
    async with connect(mesh.target, mesh.key) as client:
        expected = await undisturbed(client, 4)
        os.kill(etcd, signal.SIGSTOP)
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                assert await undisturbed(client, 4) == expected
                await asyncio.sleep(1)
            assert await metric(mesh.metrics_port("router-1"), "headrace_process_etcd_connected") == 0
        finally:
            os.kill(etcd, signal.SIGCONT)
        end = time.monotonic() + 15
        while time.monotonic() < end:  # while everybody announces themselves again
            assert await undisturbed(client, 4) == expected
            await asyncio.sleep(0.2)
    mesh.wait_healthy()
    assert await metric(mesh.metrics_port("router-1"), "headrace_process_etcd_connected") == 1
