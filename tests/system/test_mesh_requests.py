"""Requests through the whole mesh, as processes behind Envoy, with the simulated engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from headrace.policy.v1 import policy_pb2
from tests.system.client import BOTH, Answer, Client, ask, connect, details, metric
from tests.system.mesh import Mesh

MODEL = "simulated"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="simulated", executors=1, envoy=True) as running:
        yield running


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    async with connect(mesh.target, mesh.key) as connected:
        yield connected


async def test_session_answers_are_those_of_generate(client: Client) -> None:
    requests = [ask(MODEL, f"Tell me about river number {i}.", max_tokens=10 + i) for i in range(32)]
    generated = [await client.generate(request) for request in requests]
    streamed, messages = await client.session(requests)
    assert [a.token_ids for a in streamed] == [a.token_ids for a in generated]
    assert [a.text for a in streamed] == [a.text for a in generated]
    for index, answer in enumerate(streamed):
        assert answer.finish is not None
        assert answer.finish.usage.output_tokens == 10 + index == len(answer.token_ids)
        assert answer.finish.reason == pb.FINISH_REASON_LENGTH
    assert max(len(ids) for ids in messages) > 8, "no message of the session carried many generations"


async def test_staggered_requests_run_in_one_continuous_batch(client: Client, mesh: Mesh) -> None:
    port = mesh.metrics_port("executor-1")
    steps = await metric(port, "headrace_executor_batch_works_count")
    works = await metric(port, "headrace_executor_batch_works_sum")
    answers = [Answer() for _ in range(16)]
    tasks = []
    for index, answer in enumerate(answers):
        request = ask(MODEL, f"Staggered {index}", max_tokens=200)
        tasks.append(asyncio.create_task(client.generate(request, into=answer)))
        while not answer.times:
            await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    assert answers[-1].times[0] < answers[0].times[-1], "the last request waited for the first to end"
    steps = await metric(port, "headrace_executor_batch_works_count") - steps
    works = await metric(port, "headrace_executor_batch_works_sum") - works
    assert works == 16 * 200
    assert works / steps > 4, f"{works} tokens took {steps} steps: hardly a batch"


async def test_a_client_that_goes_away_frees_the_blocks(client: Client, mesh: Mesh) -> None:
    port = mesh.metrics_port("executor-1")
    answer = Answer()
    task = asyncio.create_task(client.generate(ask(MODEL, "x " * 200, max_tokens=4000), into=answer))
    while len(answer.token_ids) < 5:
        await asyncio.sleep(0.01)
    assert await metric(port, "headrace_executor_used_blocks", model=MODEL) >= 200 / 32
    task.cancel()
    async with asyncio.timeout(5):
        while await metric(port, "headrace_executor_used_blocks", model=MODEL):
            await asyncio.sleep(0.01)
    assert await metric(port, "headrace_executor_running_works", model=MODEL) == 0
    caches = await client.operations.ListCaches(ops.ListCachesRequest(), metadata=client.metadata)
    async with asyncio.timeout(5):
        while any(cache.reserved for cache in caches.caches):
            await asyncio.sleep(0.05)
            caches = await client.operations.ListCaches(ops.ListCachesRequest(), metadata=client.metadata)


@pytest.mark.parametrize(
    ("change", "code", "reason", "detail"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "MODEL_UNKNOWN", "ResourceInfo"),
        ({"prompt": "word " * 9000}, "INVALID_ARGUMENT", "REQUEST_INVALID", "BadRequest"),
        ({"sampling": pb.Sampling(temperature=-1)}, "INVALID_ARGUMENT", "REQUEST_INVALID", "BadRequest"),
        ({"grammar": pb.Grammar(json_schema='{"type": 7}')}, "INVALID_ARGUMENT", "REQUEST_INVALID", "BadRequest"),
        ({"grammar": pb.Grammar(json_schema="{}")}, "UNIMPLEMENTED", "NOT_SUPPORTED", "ErrorInfo"),
    ],
)
async def test_each_bad_request_has_its_own_error(
    client: Client, change: dict[str, object], code: str, reason: str, detail: str
) -> None:
    request = pb.GenerateRequest(**{"model": MODEL, "prompt": "hello", **change})  # type: ignore[arg-type]
    with pytest.raises(aio.AioRpcError) as caught:
        await client.generate(request)
    assert caught.value.code().name == code
    found = details(caught.value)
    assert found["ErrorInfo"].reason == f"ERROR_REASON_{reason}"  # type: ignore[attr-defined]
    assert found["ErrorInfo"].domain == "headrace"  # type: ignore[attr-defined]
    assert found["ErrorInfo"].metadata["request_id"]  # type: ignore[attr-defined]
    assert detail in found


async def test_every_violation_comes_at_once(client: Client) -> None:
    request = pb.GenerateRequest(
        sampling=pb.Sampling(temperature=9, top_p=0, stop=[""]), request_id="no spaces", tags={"UPPER": "x"}
    )
    with pytest.raises(aio.AioRpcError) as caught:
        await client.generate(request)
    fields = {v.field for v in details(caught.value)["BadRequest"].field_violations}  # type: ignore[attr-defined]
    assert fields == {
        "model", "input", "sampling.temperature", "sampling.top_p", "sampling.stop[0]", "request_id", "tags['UPPER']",
    }  # fmt: skip


async def test_a_wrong_key_is_refused(mesh: Mesh) -> None:
    async with connect(mesh.target, "nobody's") as stranger:
        with pytest.raises(aio.AioRpcError) as caught:
            await stranger.generate(ask(MODEL, "hello"))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details(caught.value)["ErrorInfo"].reason == "ERROR_REASON_CREDENTIALS_INVALID"  # type: ignore[attr-defined]


async def test_a_deadline_that_passes_says_where(client: Client) -> None:
    request = ask(MODEL, "slow", max_tokens=4000)
    request.timeout.FromMilliseconds(300)
    began = time.monotonic()
    with pytest.raises(aio.AioRpcError) as caught:
        await client.generate(request)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    info = details(caught.value)["ErrorInfo"]
    assert info.reason == "ERROR_REASON_DEADLINE_PASSED"  # type: ignore[attr-defined]
    # Where answers of this length are known to take longer, it is said at once.
    assert info.metadata["stage"] in ("arrival", "executor")  # type: ignore[attr-defined]
    assert time.monotonic() - began < 2
    request.timeout.FromMilliseconds(-5)
    with pytest.raises(aio.AioRpcError) as caught:
        await client.generate(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(aio.AioRpcError) as caught:  # the call's own deadline, past before it is sent
        await client.generate(ask(MODEL, "late"), timeout_s=-1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_stop_strings_end_the_answer_before_them(client: Client) -> None:
    whole = await client.generate(ask(MODEL, "stop here", max_tokens=40))
    stop = whole.text[20:26]
    request = ask(MODEL, "stop here", max_tokens=40)
    request.sampling.stop.append(stop)
    answer = await client.generate(request)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish is not None
    assert (answer.finish.reason, answer.finish.stop) == (pb.FINISH_REASON_STOP, stop)
    assert answer.finish.usage.output_tokens < 40


async def test_an_answer_resumes_where_the_caller_stands(client: Client) -> None:
    whole = await client.generate(ask(MODEL, "resume", max_tokens=30))
    rest = await client.generate(ask(MODEL, "resume", max_tokens=30, resumed_token_ids=whole.token_ids[:11]))
    assert rest.token_ids == whole.token_ids[11:]
    assert whole.text.endswith(rest.text)


async def test_log_probs_come_one_per_token(client: Client) -> None:
    request = ask(MODEL, "log", max_tokens=7, log_probs=True)
    call = client.inference.Generate(request, metadata=client.metadata)
    log_probs = [p async for response in call for p in response.log_probs]
    assert len(log_probs) == 7
    assert all(p <= 0 for p in log_probs)


async def test_models_and_tokens(client: Client) -> None:
    models = await client.inference.ListModels(pb.ListModelsRequest(), metadata=client.metadata)
    ready = {model.name: model.ready for model in models.models}
    assert ready[MODEL] is True
    count = await client.inference.CountTokens(
        pb.CountTokensRequest(model=MODEL, prompt="one two three"), metadata=client.metadata
    )
    answer = await client.generate(pb.GenerateRequest(model=MODEL, prompt="one two three", output_form=BOTH,
                                                      sampling=pb.Sampling(max_tokens=1)))  # fmt: skip
    assert answer.finish is not None
    assert count.tokens == answer.finish.usage.prompt_tokens > 0


async def test_a_cached_prefix_is_found_and_counted(client: Client) -> None:
    prompt = "a long shared preamble " * 100
    first = await client.generate(ask(MODEL, prompt, max_tokens=2))
    second = await client.generate(ask(MODEL, prompt, max_tokens=2))
    assert first.finish is not None
    assert second.finish is not None
    assert first.finish.usage.cached_tokens == 0
    assert second.finish.usage.cached_tokens >= 0.8 * second.finish.usage.prompt_tokens


async def test_a_kill_switch_works_within_a_second_and_goes_off_again(client: Client) -> None:
    switch = policy_pb2.Switch(kind=policy_pb2.SWITCH_KIND_MODEL, name=MODEL, reason="drill")
    await client.operations.PutSwitch(ops.PutSwitchRequest(switch=switch), metadata=client.metadata)
    await asyncio.sleep(1)
    with pytest.raises(aio.AioRpcError) as caught:
        await client.generate(ask(MODEL, "hello"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(caught.value)["PreconditionFailure"].violations[0].description == "drill"  # type: ignore[attr-defined]
    delete = ops.DeleteSwitchRequest(kind=policy_pb2.SWITCH_KIND_MODEL, name=MODEL)
    await client.operations.DeleteSwitch(delete, metadata=client.metadata)
    await asyncio.sleep(1)
    assert (await client.generate(ask(MODEL, "hello"))).finish is not None
    with pytest.raises(aio.AioRpcError) as caught:
        await client.operations.DeleteSwitch(delete, metadata=client.metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_explain_speaks_for_every_stage(client: Client) -> None:
    response = await client.operations.Explain(
        ops.ExplainRequest(request=ask(MODEL, "what if")), metadata=client.metadata
    )
    stages = [d.stage for d in response.decisions]
    copies = stages.count("placement")
    assert list(dict.fromkeys(stages)) == ["admission", "router", "placement", "batcher", "executor"]
    batcher = [d.choice for d in response.decisions if d.stage == "batcher"]
    assert batcher in (["no wait", "executor executor-1"], ["no wait", "promise", "executor executor-1"])
    assert copies, "nobody says why the model lies where it does"


async def test_operations_are_for_operators(mesh: Mesh) -> None:
    async with connect(mesh.target, "headrace-reader-key") as reader:
        with pytest.raises(aio.AioRpcError) as caught:
            await reader.operations.ListTenants(ops.ListTenantsRequest(), metadata=reader.metadata)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_usage_is_counted_per_tenant(client: Client, mesh: Mesh) -> None:
    async with connect(mesh.target, "headrace-reader-key") as reader:
        await reader.generate(ask(MODEL, "count me", max_tokens=9))
    usage = await client.operations.ListUsage(ops.ListUsageRequest(), metadata=client.metadata)
    assert {u.tenant: u.output_tokens for u in usage.usages}["reader"] == 9
