"""The whole mesh with the real model: what `make up` promises."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.system.client import Answer, ask, connect, france, metric
from tests.system.mesh import Mesh

MODEL = "smollm2"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="openvino", executors=1, envoy=True) as running:
        yield running


async def test_the_capital_of_france(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        answer = await client.generate(france(MODEL))
        assert answer.text == "The capital of France is Paris."
        assert answer.finish is not None
        assert len(answer.times) > 3, "it did not stream"
        streamed, _ = await client.session([france("default")])
        assert streamed[0].text == answer.text


async def test_staggered_requests_share_the_batch(mesh: Mesh) -> None:
    port = mesh.metrics_port("executor-1")
    async with connect(mesh.target, mesh.key) as client:
        steps = await metric(port, "headrace_executor_batch_works_count")
        works = await metric(port, "headrace_executor_batch_works_sum")
        answers, tasks, submitted = [Answer() for _ in range(16)], [], []
        for index, answer in enumerate(answers):
            submitted.append(time.monotonic())
            tasks.append(asyncio.create_task(client.generate(ask(MODEL, f"Story {index}:", 40), into=answer)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)
        assert answers[0].times[0] < submitted[-1]
        steps = await metric(port, "headrace_executor_batch_works_count") - steps
        works = await metric(port, "headrace_executor_batch_works_sum") - works
        assert works == 16 * 40
        assert works / steps > 3, f"{works} tokens took {steps} steps"


async def test_a_cancel_frees_the_blocks_of_the_real_engine(mesh: Mesh) -> None:
    port = mesh.metrics_port("executor-1")
    async with connect(mesh.target, mesh.key) as client:
        answer = Answer()
        task = asyncio.create_task(client.generate(ask(MODEL, "Once upon a time", 2000), into=answer))
        while len(answer.token_ids) < 5:
            await asyncio.sleep(0.01)
        assert await metric(port, "headrace_executor_used_blocks", model=MODEL) > 0
        task.cancel()
        async with asyncio.timeout(5):
            while await metric(port, "headrace_executor_used_blocks", model=MODEL):
                await asyncio.sleep(0.01)


async def test_the_engine_dies_and_no_token_is_lost_or_repeated(mesh: Mesh) -> None:
    """Behind the kill the prompt is computed in one go instead of token by token, which rounds differently: so
    only what came before is compared; the rest is counted, and the lanes' offsets see every gap and repeat."""
    async with connect(mesh.target, mesh.key) as client:
        request = ask(MODEL, "The history of the water mill begins", 120)
        whole = await client.generate(request)
        answer = Answer()
        task = asyncio.create_task(client.generate(request, into=answer))
        while len(answer.token_ids) < 20:
            await asyncio.sleep(0.005)
        killed, begun = time.monotonic(), len(answer.token_ids)
        mesh.kill("executor-1")
        await task
        assert time.monotonic() - killed < 20
        assert len(answer.token_ids) == 120
        assert answer.token_ids[:begun] == whole.token_ids[:begun]
        assert answer.finish is not None
        assert answer.finish.usage.output_tokens == 120
        assert await metric(mesh.metrics_port("batcher-1"), "headrace_batcher_requeues_total") >= 1
