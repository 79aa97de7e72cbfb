"""What dies, and what does not: every service in turn is killed under streaming requests, some within stop strings."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from libs.client import GenerateOptions, HeadraceClient
from libs.client.answer import Answer as SdkAnswer
from services.admission.validate import MAX_STOP_CHARACTERS
from tests.system.client import Answer, Client, ask, connect, metric
from tests.system.mesh import Mesh

MODEL = "simulated"
BACK_S = 10.0
"""Within this time after a kill, the mesh answers new requests again."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="simulated", executors=2, envoy=True) as running:
        yield running


def requests(count: int, tokens: int = 150) -> list[pb.GenerateRequest]:
    return [ask(MODEL, f"An answer that must survive, number {i}.", max_tokens=tokens) for i in range(count)]


async def undisturbed(client: Client, count: int) -> Sequence[Answer]:
    return await asyncio.gather(*(client.generate(request) for request in requests(count)))


def stop_of(number: int, text: str, before: int) -> str:
    """Of every other answer: a stop string that is made by some fifty tokens, so that what is killed meanwhile has made
    a part of it."""
    return text[before : before + MAX_STOP_CHARACTERS] if number % 2 else ""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


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
        wholes, asked, answers = await undisturbed(client, 8), requests(8), [Answer() for _ in range(8)]
        stops = [stop_of(number, whole.text, 20) for number, whole in enumerate(wholes)]
        for request, stop in zip(asked, stops, strict=True):
            request.sampling.stop.extend([stop] if stop else [])
        tasks = [asyncio.create_task(client.generate(r, into=a)) for r, a in zip(asked, answers, strict=True)]
        await until(lambda: all(len(answer.token_ids) > 8 for answer in answers))
        killed = time.monotonic()
        mesh.kill(component)
        assert not any(answer.finish for answer in answers)
        back = await answers_again(mesh, killed)
        await asyncio.gather(*tasks)
    for answer, whole, stop in zip(answers, wholes, stops, strict=True):
        assert answer.finish is not None
        assert (answer.text, answer.finish.stop) == ((whole.text[:20], stop) if stop else (whole.text, ""))
        assert answer.token_ids == (whole.token_ids[: len(answer.token_ids)] if stop else whole.token_ids)
        assert answer.finish.usage.output_tokens < (100 if stop else 151)
    assert back < BACK_S, f"new requests were answered only {back:.1f} s after {component} was killed"


@pytest.mark.parametrize("multiplex", [False, True], ids=["generate", "session"])
@pytest.mark.parametrize("component", ["admission-1", "envoy"])
async def test_a_killed_door_costs_users_of_the_sdk_no_token(mesh: Mesh, component: str, multiplex: bool) -> None:
    """The streams break; the SDK sends the requests again with the tokens it has."""
    mesh.wait_healthy()
    options = GenerateOptions(max_tokens=150, temperature=0, ignore_end=True, output="both")
    prompts = [request.prompt for request in requests(8)]
    async with HeadraceClient(mesh.target, api_key=mesh.key, multiplex=multiplex, timeout=60) as client:
        wholes = await asyncio.gather(*(client.complete(MODEL, prompt=p, options=options) for p in prompts))
        stops = [stop_of(number, whole.text, 100) for number, whole in enumerate(wholes)]
        answers = [
            client.generate(MODEL, prompt=prompt, options=replace(options, stop=(stop,) if stop else ()))
            for prompt, stop in zip(prompts, stops, strict=True)
        ]
        readers = [Reader(answer) for answer in answers]
        await until(lambda: all(len(reader.text) >= 100 for reader in readers))
        assert not any(reader.task.done() for reader in readers)
        killed = time.monotonic()
        mesh.kill(component)
        back = await answers_again(mesh, killed)
        await asyncio.gather(*(reader.task for reader in readers))
    assert all(answer.resent for answer in answers)
    for reader, whole, stop in zip(readers, wholes, stops, strict=True):
        assert reader.text == (whole.text[:100] if stop else whole.text)
        assert reader.stop == (stop or None)
        assert reader.token_ids == list(whole.token_ids[: len(reader.token_ids)] if stop else whole.token_ids)
    assert back < BACK_S, f"new requests were answered only {back:.1f} s after {component} was killed"


class Reader:
    """Reads an answer to its end, and has what came so far."""

    def __init__(self, answer: SdkAnswer) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.stop: str | None = None
        self.task = asyncio.create_task(self._read(answer))

    async def _read(self, answer: SdkAnswer) -> None:
        async for chunk in answer:
            self.text += chunk.text
            self.token_ids += chunk.token_ids
            self.stop = chunk.finish.stop if chunk.finish is not None else None


async def test_requests_go_on_while_etcd_is_stopped(mesh: Mesh) -> None:
    """etcd frozen for several times its leases: every one lapses meanwhile, and nobody minds."""
    mesh.wait_healthy()
    etcd = mesh.pid("etcd")
    async with connect(mesh.target, mesh.key) as client:
        expected = [answer.token_ids for answer in await undisturbed(client, 4)]
        os.kill(etcd, signal.SIGSTOP)
        try:
            end = time.monotonic() + 18
            while time.monotonic() < end:
                assert [answer.token_ids for answer in await undisturbed(client, 4)] == expected
                await asyncio.sleep(1)
            assert await metric(mesh.metrics_port("router-1"), "headrace_process_etcd_connected") == 0
        finally:
            os.kill(etcd, signal.SIGCONT)
        end = time.monotonic() + 10
        while time.monotonic() < end:  # while everybody announces themselves again
            assert [answer.token_ids for answer in await undisturbed(client, 4)] == expected
            await asyncio.sleep(0.2)
    mesh.wait_healthy()
    assert await metric(mesh.metrics_port("router-1"), "headrace_process_etcd_connected") == 1
