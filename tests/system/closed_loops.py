"""Callers that ask again as soon as they have their answer, each in its own way, and hold every answer to what an
undisturbed mesh said.

    loops = ClosedLoops(mesh.target, mesh.key)
    await loops.rehearse()               # what the answers are
    async with loops.running([Caller("plain", 8), Caller("session", 400)]):
        ...                              # whatever is done to the mesh
    assert not loops.failures
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from grpc import aio

from libs.client import GenerateOptions, HeadraceClient, HeadraceError
from tests.system.client import ask, connect

MODEL = "simulated"
PROMPTS = 4
THINK_S = 0.03
"""Between an answer and the next question: the load is there to be disturbed, not to fill the machine."""
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Caller:
    """One closed loop."""

    door: Literal["plain", "generate", "session"]
    """A client of the stubs that never sends anything again; the SDK by Generate; the SDK by Session."""
    tokens: int
    """Of each answer."""

    def __str__(self) -> str:
        return f"{self.door} of {self.tokens} tokens"


@dataclass(slots=True)
class ClosedLoops:
    """What the callers got."""

    target: str
    key: str
    expected: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """The tokens of each answer, by its prompt and length."""
    answered: Counter[str] = field(default_factory=Counter)
    """Whole and right answers, by caller."""
    resent: Counter[str] = field(default_factory=Counter)
    """How often the SDK sent a request again, by caller."""
    failures: list[str] = field(default_factory=list)
    """What went wrong, when, and for whom."""
    slowest_s: dict[str, float] = field(default_factory=dict)
    doing: str = ""
    """What is being done to the mesh; stands in front of failures."""

    async def rehearse(self, lengths: Iterable[int]) -> None:
        """Asks for every answer that is not known yet, while nothing happens to the mesh."""
        every = [(prompt(number), tokens) for tokens in set(lengths) for number in range(PROMPTS)]
        wanted = [one for one in every if one not in self.expected]
        async with connect(self.target, self.key) as client:
            answers = await asyncio.gather(*(client.generate(ask(MODEL, text, tokens)) for text, tokens in wanted))
        for one, answer in zip(wanted, answers, strict=True):
            assert len(answer.token_ids) == one[1]
            self.expected[one] = answer.token_ids

    @asynccontextmanager
    async def running(self, callers: Iterable[Caller]) -> AsyncIterator[None]:
        """The callers ask within the block; at its end each gets its last answer."""
        over = asyncio.Event()
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            session = await stack.enter_async_context(self._sdk(multiplex=True))
            single = await stack.enter_async_context(self._sdk(multiplex=False))
            for number, caller in enumerate(callers):
                sdk = session if caller.door == "session" else single
                loop = self._plain(caller, number, over) if caller.door == "plain" else None
                group.create_task(loop or self._by_sdk(sdk, caller, number, over), name=str(caller))
            try:
                yield
            finally:
                over.set()

    def _sdk(self, *, multiplex: bool) -> HeadraceClient:
        return HeadraceClient(self.target, api_key=self.key, multiplex=multiplex, timeout=TIMEOUT_S)

    async def _plain(self, caller: Caller, number: int, over: asyncio.Event) -> None:
        async with connect(self.target, self.key) as client:
            while not over.is_set():
                text, began = prompt(number), time.monotonic()
                number += 1
                try:
                    answer = await client.generate(ask(MODEL, text, caller.tokens), TIMEOUT_S)
                except aio.AioRpcError as error:
                    await self._failed(caller, began, f"{error.code().name}: {error.details()}")
                    continue
                self._judge(caller, text, answer.token_ids, began)

    async def _by_sdk(self, client: HeadraceClient, caller: Caller, number: int, over: asyncio.Event) -> None:
        options = GenerateOptions(max_tokens=caller.tokens, temperature=0, ignore_end=True, output="both")
        while not over.is_set():
            text, began = prompt(number), time.monotonic()
            number += 1
            answer = client.generate(MODEL, prompt=text, options=options)
            try:
                completion = await answer.complete()
            except HeadraceError as error:
                await self._failed(caller, began, f"{type(error).__name__}: {error}")
                continue
            self.resent[str(caller)] += answer.resent
            self._judge(caller, text, list(completion.token_ids), began)

    def _judge(self, caller: Caller, text: str, tokens: list[int], began: float) -> None:
        took = time.monotonic() - began
        self.slowest_s[str(caller)] = max(took, self.slowest_s.get(str(caller), 0.0))
        if tokens == self.expected[text, caller.tokens]:
            self.answered[str(caller)] += 1
        else:
            self.failures.append(f"{self.doing}: {caller}: other tokens than before, {len(tokens)} of them")

    async def _failed(self, caller: Caller, began: float, why: str) -> None:
        self.failures.append(f"{self.doing}: {caller}: after {time.monotonic() - began:.2f} s: {why}")
        await asyncio.sleep(0.05)  # a mesh that is shut is not to be asked in a busy loop


def prompt(number: int) -> str:
    """Of a few, so that each answer is known."""
    return f"A question that outlives whoever answers it, number {number % PROMPTS}."
