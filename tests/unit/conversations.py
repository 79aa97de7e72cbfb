"""Conversations under contracts: admission in front of a router by hand, tools behind a real port."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from libs.clock import SystemClock
from libs.errors import HeadraceError
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Outcome, Work
from libs.models.tokenizers import Tokenizers
from libs.registry import EtcdClient, Registry
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Span, Tracing
from services.admission.contracts.agreement import agree
from services.admission.contracts.approvals import Approvals
from services.admission.contracts.caller import ToolCaller
from services.admission.contracts.conversation import Conversation
from services.admission.contracts.observe import ContractObserver
from services.admission.contracts.tool_calls import Means
from services.admission.front import Front
from services.admission.generation import Answer, Chunk, Finish, Generation, ToolStep
from services.admission.policy import Contract, ContractTool, Policy, Tenant, Tool
from services.admission.request import Request, Turn
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


async def sleep(request: web.Request) -> web.StreamResponse:
    """Answers when nobody waits any more."""
    await asyncio.sleep(1)
    return web.Response(text="late")


@asynccontextmanager
async def talking(server: ToolServer, folder: Path) -> AsyncIterator[Talk]:
    """A conversation that may use the tools of this server."""
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
        try:
            yield Talk(tasks, caller, policy, registry, folder)
        finally:
            await tasks.close()


def call(tool: str = "clock", **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"
