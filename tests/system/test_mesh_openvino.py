"""The whole mesh with the real model: what `make up` promises."""

import asyncio
import json
import re
import time
from collections.abc import Iterator

import jsonschema
import pytest

from headrace.inference.v1 import inference_pb2 as pb
from tests.system.client import Answer, ask, connect, france, metric
from tests.system.mesh import Mesh

MODEL = "smollm2"
WORDS = ["mill", "weir", "sluice", "race"]
NUMBERS = r"[0-9]{3}-[a-z]{2}(, [0-9]{3}-[a-z]{2}){11}"


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
    only what came before is compared; the rest is counted, and the lanes' offsets see every gap and repeat. Answers
    under a grammar still follow it as a whole: the engine takes it up in the middle, where the tokens so far end."""
    schema = {"type": "array", "items": {"enum": WORDS}, "minItems": 20, "maxItems": 20}
    free = ask(MODEL, "The history of the water mill begins", 120)
    as_json = ask(MODEL, "Four words, again and again, as JSON: ", 400, grammar=json_schema(schema))
    as_regex = ask(MODEL, "Many numbers: ", 400, grammar=pb.Grammar(regex=NUMBERS))
    for request in (as_json, as_regex):
        request.sampling.ignore_end = False
    async with connect(mesh.target, mesh.key) as client:
        requests = (free, as_json, as_regex)
        wholes = await asyncio.gather(*(client.generate(request) for request in requests))
        answers = [Answer() for _ in requests]
        tasks = [asyncio.create_task(client.generate(r, into=a)) for r, a in zip(requests, answers, strict=True)]
        while not all(len(answer.token_ids) >= 20 for answer in answers):
            await asyncio.sleep(0.005)
        killed, begun = time.monotonic(), [len(answer.token_ids) for answer in answers]
        mesh.kill("executor-1")
        assert not any(answer.finish for answer in answers)
        await asyncio.gather(*tasks)
        assert time.monotonic() - killed < 30
        for answer, whole, tokens in zip(answers, wholes, begun, strict=True):
            assert len(answer.token_ids) > tokens
            assert answer.token_ids[:tokens] == whole.token_ids[:tokens]
            assert answer.finish is not None
            assert answer.finish.usage.output_tokens == len(answer.token_ids)
        assert len(answers[0].token_ids) == 120
        jsonschema.validate(json.loads(answers[1].text), schema)
        assert re.fullmatch(NUMBERS, answers[2].text)
        assert await metric(mesh.metrics_port("batcher-1"), "headrace_batcher_requeues_total") >= 1


def json_schema(schema: object) -> pb.Grammar:
    return pb.Grammar(json_schema=json.dumps(schema))
