"""Tools in an answer under a contract: which are called, how they fail, and what the model is told of it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from libs.errors import ContractBroken, RequestInvalid
from libs.lane.work import FinishReason, Grammar
from services.admission.contracts.caller import RESULT_BYTES
from services.admission.request import SamplingRequest, Turn
from tests.unit.conversations import SCHEMA, Handler, Talk, ToolServer, call, sleep, talking, tool_server
from tests.unit.letters import TENANT


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server() as running:
        yield running


@pytest.fixture
async def talk(server: ToolServer, tmp_path: Path) -> AsyncIterator[Talk]:
    async with talking(server, tmp_path) as made:
        yield made


async def test_a_tool_is_called_and_the_answer_goes_on(talk: Talk, server: ToolServer) -> None:
    await talk.ask("tools", token_ids=True)
    first = await talk.says(1, f"Let me look. {call(zone='UTC')}")
    assert '"name": "clock"' in first
    second = await talk.says(2, "It is noon.")
    assert call(zone="UTC") in second
    assert '<tool_response>\n{"name": "clock", "content": "noon"}\n</tool_response>' in second
    finish = await talk.ended()
    assert talk.text == "Let me look. It is noon."
    assert talk.states == ["clock running", "clock done"]
    assert (talk.steps[1].step, talk.steps[1].arguments, talk.steps[1].result) == (1, '{"zone": "UTC"}', "noon")
    assert not any(chunk.token_ids for chunk in talk.chunks), "there are none that are the answer's"
    ((body, headers),) = server.asked
    assert body == {"zone": "UTC"}
    assert (headers["Headrace-Request-Id"], headers["Headrace-Tenant"]) == ("r", TENANT.name)
    assert finish.output_tokens == len(f"Let me look. {call(zone='UTC')}It is noon.")
    assert {work.request_id for work in talk.lane.sent} == {"r"}
    assert talk.lane.sent[1].deadline == talk.lane.sent[0].deadline
    assert talk.lane.sent[1].sampling.max_tokens == 400 - len(f"Let me look. {call(zone='UTC')}")
    tool, step = sorted(talk.spans, key=lambda span: span.name)
    assert (tool.name, step.name) == ("execute_tool clock", "step")
    assert headers["traceparent"].split("-")[2] == tool.span_id
    assert {tool.parent_id, step.parent_id} == {talk.span.traceparent.split("-")[2]}


async def test_calls_of_one_answer_are_made_in_order(talk: Talk, server: ToolServer) -> None:
    server.answers = ["one", "two"]
    await talk.ask("tools")
    await talk.says(1, call(zone="a") + call("sun") + call(zone=7) + "<tool_call>{</tool_call>" + call("once"))  # type: ignore[arg-type]
    prompt = await talk.says(2, "Done.")
    await talk.ended()
    assert talk.states == [
        "clock running", "clock done", "sun failed", "clock failed", "once running", "once done",
    ]  # fmt: skip
    assert prompt.count("<tool_response>\n{") == 5
    assert "there is no tool 'sun'; there are: clock, once" in prompt
    assert "7 is not of type 'string'" in prompt
    assert "this call was not made: it is not JSON" in prompt
    assert [body for body, _ in server.asked] == [{"zone": "a"}, {}]
    assert talk.counted("headrace_admission_tool_calls_total", tool="other", result="refused") == 2


async def refuse(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def flood(request: web.Request) -> web.StreamResponse:
    return web.Response(text="x" * (RESULT_BYTES + 1))


async def deny(request: web.Request) -> web.StreamResponse:
    return web.Response(status=404, text="no such zone")


async def binary(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff")


async def zipped(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "tries", "why"),
    [
        (refuse, 3, "answered with status 503"),
        (sleep, 3, "did not answer within 0.3 s"),
        (cut, 3, "did not answer: ServerDisconnectedError"),
        (redirect, 1, "redirects are not followed"),
        (flood, 1, "more than 64 KiB"),
        (deny, 1, "status 404: no such zone"),
        (binary, 1, "not UTF-8"),
        (zipped, 1, "compressed"),
    ],
)
async def test_a_tool_that_fails_is_told_to_the_model(
    talk: Talk, server: ToolServer, answer: Handler, tries: int, why: str
) -> None:
    server.answers = [answer] * 9
    await talk.ask("tools")
    await talk.says(1, call())
    prompt = await talk.says(2, "I cannot tell.")
    await talk.ended()
    assert talk.states == ["clock running", "clock failed"]
    assert talk.steps[-1].result.startswith("TOOL_FAILED: clock ")
    assert why in talk.steps[-1].result
    assert f'"error": "{talk.steps[-1].result}"' in prompt
    assert len(server.asked) == tries


async def test_what_is_not_idempotent_is_called_once(talk: Talk, server: ToolServer) -> None:
    server.answers = [refuse, "never"]
    await talk.ask("tools")
    await talk.says(1, call("once"))
    await talk.says(2, "I cannot.")
    await talk.ended()
    assert len(server.asked) == 1


async def test_a_failure_that_passes_is_not_told(talk: Talk, server: ToolServer) -> None:
    server.answers = [refuse, "noon"]
    await talk.ask("tools")
    await talk.says(1, call())
    await talk.says(2, "Noon.")
    await talk.ended()
    assert talk.states == ["clock running", "clock done"]


async def test_tools_that_are_switched_off_meanwhile_are_not_called(talk: Talk, server: ToolServer) -> None:
    await talk.ask("tools")
    await talk.work(1)
    talk.policy = replace(talk.policy, tools_off={"clock": "it is wrong"})
    prompt = await talk.says(1, call())
    assert '"name": "clock"' in prompt
    second = await talk.says(2, call("once"))
    assert "clock is switched off: it is wrong" in second
    await talk.work(3)
    talk.rules.saturated = True
    await talk.says(3, "I cannot tell.")
    await talk.ended()
    assert [body for body, _ in server.asked] == [{}]


async def test_under_saturation_tools_are_not_offered(talk: Talk, server: ToolServer) -> None:
    talk.rules.saturated = True
    await talk.ask("tools")
    prompt = await talk.says(1, call())
    assert "clock" not in prompt
    assert "tools are off while the mesh is saturated" in await talk.says(2, "I cannot tell.")
    await talk.ended()
    assert not server.asked


async def test_the_last_step_is_told_to_answer(talk: Talk, server: ToolServer) -> None:
    await talk.ask("tools")
    await talk.says(1, call())
    assert "without further calls" not in await talk.says(2, call())
    assert "without further calls" in await talk.says(3, call())
    with pytest.raises(ContractBroken, match="not done after 3 steps"):
        await talk.ended()
    assert len(server.asked) == 2, "a call whose result nobody could look at is not made"


async def test_tokens_are_counted_over_all_steps(talk: Talk, server: ToolServer) -> None:
    await talk.ask("tools", sampling=SamplingRequest(max_tokens=70))
    await talk.says(1, call())
    work = await talk.work(2)
    assert work.sampling.max_tokens == 70 - len(call())
    await talk.says(2, "x" * work.sampling.max_tokens, FinishReason.LENGTH)
    finish = await talk.ended()
    assert (finish.reason, finish.output_tokens) == (FinishReason.LENGTH, 70)


async def test_a_call_that_is_cut_is_not_made(talk: Talk, server: ToolServer) -> None:
    await talk.ask("tools", sampling=SamplingRequest(max_tokens=20))
    await talk.says(1, call()[:20], FinishReason.LENGTH)
    with pytest.raises(ContractBroken, match="not done after 20 tokens"):
        await talk.ended()
    assert not server.asked


async def test_a_prompt_that_has_grown_too_long_breaks_the_contract(talk: Talk, server: ToolServer) -> None:
    with pytest.raises(RequestInvalid, match="at most 800 are allowed"):
        await talk.ask("tight", chat=(Turn("user", "x" * 800),))
    server.answers = ["x" * 800]
    await talk.ask("tight")
    await talk.says(1, call())
    with pytest.raises(ContractBroken, match=r"step 2 cannot be asked for.*at most 800 are allowed"):
        await talk.ended()


async def test_with_a_schema_the_answer_alone_is_shown(talk: Talk, server: ToolServer) -> None:
    await talk.ask("both")
    assert (await talk.work(1)).grammar is None, "the model has to be free to call"
    assert "Your final answer is JSON" in await talk.says(1, f"Let me look. {call()}")
    await talk.says(2, "It is noon.")
    assert (await talk.work(3)).grammar == Grammar("json_schema", SCHEMA)
    await talk.says(3, '{"n": 12}')
    await talk.ended()
    assert talk.text == '{"n": 12}'
    assert talk.states == ["clock running", "clock done"]
