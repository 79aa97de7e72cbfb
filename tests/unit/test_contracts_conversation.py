"""An answer under a contract, step by step: admission in front of a router by hand, tools behind a real port."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from libs.clock import SystemClock
from libs.errors import (
    Cancelled,
    ContractBroken,
    DeadlinePassed,
    HeadraceError,
    InternalError,
    Overloaded,
    QuotaExceeded,
    RequestInvalid,
)
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Grammar, Note, Outcome, Work
from libs.models.tokenizers import Tokenizers
from libs.registry import EtcdClient, Registry
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Span, Tracing
from services.admission.contracts.agreement import agree
from services.admission.contracts.approvals import Approvals
from services.admission.contracts.caller import RESULT_BYTES, ToolCaller
from services.admission.contracts.conversation import Conversation
from services.admission.contracts.observe import ContractObserver
from services.admission.contracts.tool_calls import Means
from services.admission.front import Front
from services.admission.generation import Answer, Chunk, Finish, Generation, ToolStep
from services.admission.policy import Contract, ContractTool, Policy, Tenant, Tool
from services.admission.request import Request, SamplingRequest, Turn
from tests.unit.fronts import front
from tests.unit.lanes import HandLane, HandStage
from tests.unit.letters import POLICY, SPEC, TENANT, tokenizer, tokens

SCHEMA = json.dumps({"type": "object", "required": ["n"]})
SPACIOUS = replace(SPEC, context_tokens=20_000)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model(HandStage):
    """A router whose works say what the test says: letters, not the numbers that its lanes look for in a resume."""

    def new_lane(self, sink):  # type: ignore[no-untyped-def]
        lane = super().new_lane(sink)

        def submit(work_id: int, work: Work) -> None:
            lane.works[work_id] = work
            lane.made[work_id] = len(work.resumed)
            lane.sent.append(work)

        lane.submit = submit  # type: ignore[method-assign]
        return lane


class ToolServer:
    """Answers each POST as the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, str]]] = []
        self.answers: list[Handler | str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((await request.json(), dict(request.headers)))
        answer = self.answers.pop(0) if self.answers else "noon"
        return web.Response(text=answer) if isinstance(answer, str) else await answer(request)


@asynccontextmanager
async def tool_server() -> AsyncIterator[ToolServer]:
    server = ToolServer()
    app = web.Application()
    app.router.add_route("*", "/{name}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()


class Rules:
    """The front's part of a conversation, with a ladder by hand."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.saturated = False
        self.begun: list[Request] = []
        self.refuse: list[HeadraceError] = []
        self.cancelled: list[Answer] = []

    async def begin(
        self, request: Request, tenant: Tenant, span: Span, changed: Callable[[Generation], None]
    ) -> Generation:
        if self.begun and self.refuse:
            raise self.refuse.pop(0)
        self.begun.append(request)
        return await self.front.begin(request, tenant, span, changed)

    def cancel(self, answer: Answer) -> None:
        self.cancelled.append(answer)
        self.front.cancel(answer)

    def tools_off(self, request: Request, tenant: Tenant) -> bool:
        return self.saturated


class Talk:
    """A conversation, its model played by the test, and what a client has taken of it."""

    def __init__(self, tasks: Tasks, caller: ToolCaller, policy: Policy, registry: Registry, folder: Path) -> None:
        self.router, self.clock, self.policy = Model(), SystemClock(), policy
        forwarder = Forwarder("admission", lambda work, ready: ready[0], self.clock)
        forwarder.set_neighbours({"router-0": self.router})
        self.tokenizers = Tokenizers(lambda source, folder: tokenizer(), None, tasks)  # type: ignore[arg-type]
        self.tokenizers.want(policy.models)
        self.rules = Rules(front(forwarder, lambda: self.policy, self.tokenizers, self.clock, tasks, folder))
        self.spans: list[SpanRecord] = []
        self.metrics = Metrics("admission", "admission-0", "0")
        tracing = Tracing("admission", "admission-0", 1.0, self.spans.append)
        self.span = tracing.start("request")
        self.means = Means(
            lambda: self.policy, caller, Approvals(registry), ContractObserver(self.metrics), self.clock, tracing
        )
        self.tasks = tasks
        self.chunks: list[Chunk] = []
        self._news = asyncio.Event()
        self.conversation: Conversation

    async def ask(self, contract: str, **changes: Any) -> None:
        await self.tokenizers.loaded()
        values: dict[str, Any] = {"chat": (Turn("user", "time?"),), "contract": contract, "request_id": "r"}
        request = Request("letters", **{**values, **changes})
        agreement = agree(request, TENANT, self.policy)
        self.conversation = Conversation(
            self.means, self.rules, agreement, request, TENANT, self.span, lambda _: self._news.set()
        )
        await self.conversation.begin()
        self.means.observer.started()
        self.conversation.started(self.tasks.spawn(self.conversation.run(), "conversation"))

    @property
    def lane(self) -> HandLane:
        return self.router.lane

    async def work(self, number: int) -> Work:
        """The work of a step, from 1."""
        async with asyncio.timeout(5):
            while len(self.lane.sent) < number:
                await asyncio.sleep(0.001)
        return self.lane.sent[number - 1]

    def say(self, text: str, end: Outcome | None = None) -> None:
        """The step that runs says this, and ends unless told otherwise."""
        (work_id,) = self.lane.works
        frame = Draft()
        frame.add(work_id, self.lane.made[work_id], tokens(text))
        self.lane.made[work_id] += len(tokens(text))
        self.lane.sink.on_frame(Frame.of(frame))
        if end is not None:
            self.lane.end(work_id, end)

    async def says(self, number: int, text: str, reason: FinishReason = FinishReason.STOP) -> str:
        """Step `number` says this and ends; returns its prompt."""
        prompt = bytes((await self.work(number)).prompt).decode()
        self.say(text, Outcome(reason))
        return prompt

    async def take(self, until: Callable[["Talk"], Any]) -> Any:
        """Reads as a client does, until something is so."""
        async with asyncio.timeout(5):
            while not (found := until(self)):
                await self._news.wait()
                self._news.clear()
                self.chunks.append(self.conversation.take())
        return found

    async def ended(self) -> Finish:
        finish = await self.take(lambda talk: talk.chunks and (talk.chunks[-1].finish or talk.chunks[-1].error))
        if isinstance(finish, HeadraceError):
            raise finish
        assert isinstance(finish, Finish)
        return finish

    @property
    def text(self) -> str:
        shown = ""
        for chunk in self.chunks:
            shown = chunk.text if chunk.restart else shown + chunk.text
        return shown

    @property
    def steps(self) -> list[ToolStep]:
        return [step for chunk in self.chunks for step in chunk.tool_steps]

    @property
    def states(self) -> list[str]:
        return [f"{step.tool} {step.state}" for step in self.steps]

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


CLOCK = ContractTool("clock", retries=2)
CONTRACTS = (
    Contract("form", output_schema=SCHEMA, repairs=2),
    Contract("strict", output_schema=SCHEMA),
    Contract("tools", tools=(CLOCK, ContractTool("once", retries=5)), max_steps=3, max_output_tokens=400),
    Contract("both", output_schema=SCHEMA, repairs=1, tools=(CLOCK,), max_steps=4),
    Contract("tight", tools=(CLOCK,), max_prompt_tokens=800),
    Contract("free", max_output_tokens=9),
)


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server() as running:
        yield running


@pytest.fixture
async def talk(server: ToolServer, tmp_path: Path) -> AsyncIterator[Talk]:
    url = f"http://127.0.0.1:{server.port}/"
    zone = json.dumps({"type": "object", "properties": {"zone": {"type": "string"}}, "additionalProperties": False})
    policy = replace(
        POLICY,
        models={"letters": SPACIOUS},
        contracts={each.name: each for each in CONTRACTS},
        tools={
            "clock": Tool("clock", "Tells the time.", zone, url + "clock", 0.3, idempotent=True),
            "once": Tool("once", "Does it once.", "", url + "once", 0.3),
        },
    )
    tasks = Tasks()
    async with Registry(EtcdClient(["127.0.0.1:1"], None)) as registry, ToolCaller(SystemClock()) as caller:
        yield Talk(tasks, caller, policy, registry, tmp_path)
        await tasks.close()


def bare(talk: Talk) -> None:
    """The model cannot be held to a grammar."""
    talk.policy = replace(talk.policy, models={"letters": replace(SPACIOUS, capabilities=("chat",))})


def call(tool: str = "clock", **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


# --- output schemas --------------------------------------------------------------------------------


async def test_a_constrained_answer_is_shown_as_it_is_made(talk: Talk) -> None:
    await talk.ask("form", token_ids=True)
    work = await talk.work(1)
    assert work.grammar == Grammar("json_schema", SCHEMA)
    assert b"schema" not in bytes(work.prompt), "the grammar says it"
    talk.say('{"n"')
    await talk.take(lambda talk: talk.text == '{"n"')
    talk.say(": 1}", Outcome(FinishReason.STOP))
    finish = await talk.ended()
    assert talk.text == '{"n": 1}'
    assert [token for chunk in talk.chunks for token in chunk.token_ids] == tokens('{"n": 1}')
    assert finish.output_tokens == 8
    assert talk.counted("headrace_admission_contracts_total", contract="form", result="OK") == 1
    assert talk.counted("headrace_admission_conversations") == 0


async def test_a_constrained_answer_that_is_cut_is_not_valid(talk: Talk) -> None:
    await talk.ask("strict")
    await talk.says(1, '{"n": ', FinishReason.LENGTH)
    with pytest.raises(ContractBroken) as caught:
        await talk.ended()
    assert "was cut after 6 tokens" in caught.value.violations[0].description


async def test_a_constrained_answer_that_is_wrong_begins_anew(talk: Talk) -> None:
    await talk.ask("form")
    await talk.says(1, "{}")
    prompt = await talk.says(2, '{"n": 1}')
    assert "'n' is a required property" in prompt
    finish = await talk.ended()
    assert talk.text == '{"n": 1}'
    assert sum(chunk.restart for chunk in talk.chunks) == 1
    assert finish.output_tokens == 10
    assert talk.counted("headrace_admission_repairs_total", contract="form") == 1


async def test_an_unconstrained_answer_is_shown_once_it_is_valid(talk: Talk) -> None:
    bare(talk)
    await talk.ask("form", token_ids=True)
    work = await talk.work(1)
    assert work.grammar is None
    assert SCHEMA.encode() in bytes(work.prompt)
    await talk.says(1, "One.")
    await talk.says(2, '{"n": ', FinishReason.LENGTH)
    assert talk.text == ""
    await talk.says(3, '{"n": 1}')
    finish = await talk.ended()
    assert talk.text == '{"n": 1}'
    assert not any(chunk.restart for chunk in talk.chunks)
    assert [token for chunk in talk.chunks for token in chunk.token_ids] == tokens('{"n": 1}')
    assert (finish.output_tokens, finish.prompt_tokens) == (18, sum(len(work.prompt) for work in talk.lane.sent))


async def test_repairs_are_bounded_and_every_violation_is_told(talk: Talk) -> None:
    bare(talk)
    await talk.ask("form")
    for number in (1, 2, 3):
        await talk.says(number, "[]" if number == 3 else "{}")
    with pytest.raises(ContractBroken) as caught:
        await talk.ended()
    assert [violation.subject for violation in caught.value.violations] == ["answer"]
    assert "is not of type 'object'" in caught.value.violations[0].description
    assert talk.text == ""
    assert talk.counted("headrace_admission_contracts_total", contract="form", result="CONTRACT_BROKEN") == 1


async def test_only_what_the_caller_wants_is_shown(talk: Talk) -> None:
    bare(talk)
    await talk.ask("form", text=False, token_ids=True)
    await talk.says(1, '{"n": 1}')
    await talk.ended()
    assert talk.text == ""
    assert [token for chunk in talk.chunks for token in chunk.token_ids] == tokens('{"n": 1}')


async def test_a_contract_may_bound_the_answer_and_nothing_else(talk: Talk) -> None:
    await talk.ask("free", text=False, token_ids=True)
    assert (await talk.work(1)).sampling.max_tokens == 9
    await talk.says(1, "123456789", FinishReason.LENGTH)
    assert (await talk.ended()).reason is FinishReason.LENGTH


async def test_a_resumed_answer_is_judged_whole(talk: Talk) -> None:
    await talk.ask("form", resumed=tokens('{"n"'), token_ids=True)
    await talk.says(1, ": 1}")
    await talk.ended()
    assert talk.text == ": 1}"


async def test_what_was_resumed_is_void_with_the_rest(talk: Talk) -> None:
    await talk.ask("form", resumed=tokens("{}"), token_ids=True)
    await talk.says(1, "")
    await talk.says(2, '{"n": 1}')
    await talk.ended()
    assert talk.chunks[0].restart
    assert talk.text == '{"n": 1}'


# --- tools -----------------------------------------------------------------------------------------


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


async def sleep(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(1)
    return web.Response(text="late")


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


# --- its end ---------------------------------------------------------------------------------------


async def test_a_client_that_goes_away_ends_everything(talk: Talk, server: ToolServer) -> None:
    server.answers = [sleep]
    await talk.ask("tools")
    await talk.says(1, call())
    await talk.take(lambda talk: talk.steps)
    talk.conversation.cancel()
    talk.conversation.cancel()
    with pytest.raises(Cancelled):
        await talk.ended()
    await talk.tasks.close()
    assert len(talk.lane.sent) == 1
    assert talk.counted("headrace_admission_contracts_total", contract="tools", result="CANCELLED") == 1


async def test_a_client_that_goes_away_in_a_step_stops_the_model(talk: Talk) -> None:
    await talk.ask("form")
    talk.conversation.cancel()
    async with asyncio.timeout(5):
        while not talk.lane.cancels:
            await asyncio.sleep(0.001)


async def test_an_error_of_a_step_is_that_of_the_answer(talk: Talk) -> None:
    await talk.ask("tools")
    talk.say("abc")
    (work_id,) = talk.lane.works
    talk.lane.end(work_id, Outcome(error=DeadlinePassed("late")))
    with pytest.raises(DeadlinePassed):
        await talk.ended()
    assert talk.text == "abc"


async def test_a_step_without_room_waits_as_it_is_told(talk: Talk) -> None:
    await talk.ask("tools")
    talk.rules.refuse = [QuotaExceeded("tokens", retry_after_s=0.01), Overloaded("full", retry_after_s=0.01)]
    await talk.says(1, call())
    await talk.says(2, "Noon.")
    await talk.ended()
    assert not talk.rules.refuse


@pytest.mark.parametrize("refusal", [Overloaded("full"), Overloaded("full", retry_after_s=900.0)])
async def test_a_step_that_cannot_come_in_time_ends_the_answer(talk: Talk, refusal: Overloaded) -> None:
    await talk.ask("tools")
    talk.rules.refuse = [refusal]
    await talk.says(1, call())
    with pytest.raises(Overloaded):
        await talk.ended()


async def test_a_bug_ends_the_answer_without_its_text(talk: Talk) -> None:
    await talk.ask("form")
    talk.rules.refuse = [ZeroDivisionError("secret")]  # type: ignore[list-item]
    await talk.says(1, "{}")
    with pytest.raises(InternalError) as caught:
        await talk.ended()
    assert "secret" not in caught.value.message


async def test_a_process_that_stops_says_so(talk: Talk) -> None:
    await talk.ask("form")
    await talk.work(1)
    await asyncio.sleep(0.01)
    await talk.tasks.close()
    with pytest.raises(HeadraceError, match="stopping"):
        await talk.ended()


async def test_an_answer_that_the_router_begins_anew_begins_anew(talk: Talk) -> None:
    await talk.ask("tools")
    await talk.says(1, f"Let me look. {call()}")
    await talk.work(2)
    talk.say("It may be")
    await talk.take(lambda talk: talk.text.endswith("may be"))
    (work_id,) = talk.lane.works
    talk.lane.sink.on_note(work_id, Note(restart=True))
    talk.lane.made[work_id] = 0
    await talk.says(2, "It is noon.")
    finish = await talk.ended()
    assert talk.text == "Let me look. It is noon."
    assert finish.output_tokens == len(f"Let me look. {call()}It may beIt is noon.")
