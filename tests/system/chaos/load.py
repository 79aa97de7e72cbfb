"""Clients of all kinds, and what each of their requests got."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from grpc import StatusCode

from libs.client import HeadraceClient, HeadraceError
from tests.system.chaos import questions as asked
from tests.system.chaos.history import Expected, Record, Usage
from tests.system.chaos.questions import Question

TIMEOUT_S = 60.0
"""Of a request, all re-sending included."""
HANGS_S = TIMEOUT_S + 10.0
"""After so long a request that has not ended never will."""
LEAVES = 0.05
"""Share of the requests whose client goes away in the middle."""
DAWDLES = 0.05
"""Share of the requests whose client reads slowly."""
AT_ONCE = 48
"""Undisturbed questions at a time: fewer than the engines have slots."""
_CODES = {code.value[0]: code.name for code in StatusCode}


@dataclass(frozen=True, slots=True)
class Door:
    """One way in: a client of a tenant."""

    tenant: str
    kind: str
    """"generate" or "session"."""
    client: HeadraceClient


class Load:
    """Asks, and keeps records.

    Args:
        targets: What clients connect to: each has its favorite.
        chance: Chooses questions and doors.
        began: Monotonic seconds at which the run's clock is 0.
    """

    def __init__(
        self, targets: Sequence[str], questions: Sequence[Question], chance: random.Random, began: float
    ) -> None:
        self._records: list[Record] = []
        self._doors: list[Door] = []
        self._targets = targets
        self._questions = questions
        self._chance = chance
        self._began = began

    def forget(self) -> list[Record]:
        """Begins a new list of records, and returns it."""
        self._records = []
        return self._records

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """A client of each kind for every tenant; closed, no connection of theirs is left."""
        async with AsyncExitStack() as stack:
            for number, tenant in enumerate(asked.RECORDED):
                for kind in ("generate", "session"):
                    target = self._targets[(number + len(self._doors)) % len(self._targets)]
                    client = HeadraceClient(
                        target, api_key=asked.key(tenant), multiplex=kind == "session", timeout=TIMEOUT_S
                    )
                    self._doors.append(Door(tenant, kind, await stack.enter_async_context(client)))
            yield
        self._doors.clear()

    async def loops(self, count: int, stop: asyncio.Event) -> None:
        """So many closed loops until they are told to stop; returns when the last request has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._loop(stop))

    async def _loop(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            drawn = self._chance.random()
            leaves = self._chance.randint(1, 40) if drawn < LEAVES else None
            pause_s = 0.1 if LEAVES <= drawn < LEAVES + DAWDLES else 0.0
            await self.ask(leaves_after=leaves, pause_s=pause_s)
            await asyncio.sleep(self._chance.uniform(0.0, 0.3))

    async def ask(
        self, number: int | None = None, *, leaves_after: int | None = None, pause_s: float = 0.0, stops_s: float = 0.0
    ) -> Record:
        """One request, to its end; see Record.

        Args:
            number: Of the question; any.
            leaves_after: The client cancels behind so many tokens.
            pause_s: Between two reads.
            stops_s: The client does not read at all for as long, behind its first tokens.
        """
        fickle = leaves_after is not None
        door = self._chance.choice([door for door in self._doors if (door.tenant == asked.FICKLE) is fickle])
        number = self._chance.randrange(len(self._questions)) if number is None else number
        record = Record(number, door.tenant, door.kind, self._now())
        self._records.append(record)
        try:
            async with asyncio.timeout(HANGS_S):
                await self._read(record, door, leaves_after, pause_s, stops_s)
        except TimeoutError:
            record.said = "it hangs"
        return record

    async def _read(self, record: Record, door: Door, leaves_after: int | None, pause_s: float, stops_s: float) -> None:
        question = self._questions[record.question]
        answer = door.client.generate(asked.MODEL, prompt=question.prompt, options=question.options)
        try:
            async for chunk in answer:
                record.resent = answer.resent
                record.tokens += chunk.token_ids
                record.text.append(chunk.text)
                if (finish := chunk.finish) is not None:
                    record.usage = Usage(finish.usage.prompt_tokens, finish.usage.output_tokens)
                    self._end(record)
                elif leaves_after is not None and len(record.tokens) >= leaves_after:
                    answer.cancel()
                    record.left = True
                    self._end(record)
                    return
                if stops_s and record.tokens:
                    pause, stops_s = stops_s, 0.0
                    await asyncio.sleep(pause)
                await asyncio.sleep(pause_s)
        except HeadraceError as error:
            record.error = error.reason or _CODES[error.code]
            record.said = f"{type(error).__name__}: {error}"
            self._end(record)
        finally:
            record.resent = answer.resent

    def _end(self, record: Record) -> None:
        record.ends += 1
        record.ended_s = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._began


async def undisturbed(load: Load, questions: Sequence[Question]) -> list[Expected]:
    """What every question is answered with while nothing is broken. Raises AssertionError when one is not."""
    records: list[Record] = []
    async with load.open():
        for first in range(0, len(questions), AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, len(questions)))
            records += await asyncio.gather(*(load.ask(number) for number in numbers))
    found = []
    for record in records:
        assert record.usage is not None, f"undisturbed, question {record.question} got {record.error} {record.said}"
        found.append(Expected(tuple(record.tokens), "".join(record.text), record.usage))
    return found
