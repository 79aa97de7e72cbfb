"""The loop of an asynchronous engine's child, over a real socket: order, back-pressure, and ends."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from libs.errors import Overloaded
from libs.lane.work import FinishReason, Sampling, Tier, Work
from services.executor.child import loop
from services.executor.child.loop import AsyncChild, receive
from services.executor.child.wire import (
    AdapterDone,
    Broken,
    Cancel,
    Check,
    CheckDone,
    Down,
    Ended,
    LoadAdapter,
    Ready,
    Start,
    Stepped,
    UnloadAdapter,
    decode_down,
    encode,
)
from services.executor.engine import (
    BlockEvent,
    Capabilities,
    Capacity,
    Exactness,
    LoadFailed,
    RunnerStats,
    SelfCheckFailed,
)
from services.executor.stream.source import Piece


class Counting:
    """A model that counts: token n of an answer is n, as many as are read."""

    def __init__(self) -> None:
        self.made = 0
        self.closed: list[int] = []
        self.engine = RunnerStats()
        self.told: asyncio.Queue[Sequence[BlockEvent] | Exception | None] = asyncio.Queue()

    async def load(self) -> Ready:
        raise LoadFailed("it only counts")

    async def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        try:
            if work.prompt[0] == 0:
                raise Overloaded("zero is too much")
            while True:
                await asyncio.sleep(0)
                size = work.prompt[0]
                self.made += size
                yield Piece(list(range(self.made - size, self.made)))
        finally:
            self.closed.append(work_id)

    async def events(self) -> AsyncIterator[Sequence[BlockEvent]]:
        while (told := await self.told.get()) is not None:
            if isinstance(told, Exception):
                raise told
            yield told

    def stats(self) -> RunnerStats:
        return self.engine

    async def load_adapter(self, adapter: str, path: str) -> None:
        if not path:
            raise LoadFailed("no path")

    async def unload_adapter(self, adapter: str) -> None:
        self.closed.append(-1)

    async def check(self) -> None:
        if self.closed:
            raise SelfCheckFailed("something was closed")

    async def close(self) -> None: ...


class Parent:
    """The other end."""

    def __init__(self, model: Counting, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.model = model
        self.reader = reader
        self.writer = writer
        self.child: asyncio.Task[int]

    def send(self, *messages: Start | Cancel | LoadAdapter | UnloadAdapter | Check) -> None:
        for message in messages:
            self.writer.write(encode(message))

    async def hear(self) -> Down:
        message: Down = decode_down(await asyncio.wait_for(receive(self.reader), 10))
        return message

    async def stepped(self) -> Stepped:
        message = await self.hear()
        assert isinstance(message, Stepped)
        return message


CAPACITY = Capacity(4, 10, 16, Exactness.EXACT)


def work(first: int, tokens: int) -> Work:
    return Work("r", "t", Tier.INTERACTIVE, "m", (first,), Sampling(tokens), time.time() + 60)


@asynccontextmanager
async def parent() -> AsyncIterator[Parent]:
    ours, theirs = socket.socketpair()
    model = Counting()
    made = Parent(model, *await asyncio.open_unix_connection(sock=ours))
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    writer.transport.set_write_buffer_limits(high=loop.MOST_UNREAD_BYTES)
    child = AsyncChild(reader, writer, model, Ready(CAPACITY, Capabilities(Exactness.EXACT)))
    made.child = asyncio.create_task(child.run())
    try:
        assert isinstance(await made.hear(), Ready)
        yield made
    finally:
        made.writer.close()
        assert await asyncio.wait_for(made.child, 10) in (0, 1)
        writer.close()


async def test_works_events_and_state_come_in_order() -> None:
    async with parent() as it:
        it.model.engine = RunnerStats(waiting=1, blocks_used=3, blocks_cached=2)
        it.model.told.put_nowait([BlockEvent("stored", (7, 8))])
        step = await it.stepped()
        assert (step.events, step.stats) == ([("stored", [7, 8])], (0, 0, 3, 2))
        it.send(Start(1, work(2, 6)))
        tokens: list[int] = []
        ended: list[Ended] = []
        while not ended:
            step = await it.stepped()
            tokens += step.token_ids
            ended = step.ended
        assert tokens == [0, 1, 2, 3, 4, 5]
        assert (ended[0].how, ended[0].output_tokens) == ("length", 6)
        it.model.engine = RunnerStats(blocks_used=1)
        it.model.told.put_nowait([])
        assert (await it.stepped()).stats == (0, 0, 1, 0)
        it.model.told.put_nowait([])
        it.send(Start(2, work(0, 6)))
        assert [(end.how, end.message) for end in (await it.stepped()).ended] == [("OVERLOADED", "zero is too much")]
    assert it.model.closed == [1, 2]
    assert it.child.result() == 0


async def test_questions_are_answered_beside_the_works() -> None:
    async with parent() as it:
        it.send(LoadAdapter("a@1", "/a"), LoadAdapter("b@1", ""), Check(), UnloadAdapter("a@1"))
        answers = [await it.hear() for _ in range(4)]
        assert answers == [AdapterDone("a@1", ""), AdapterDone("b@1", "no path"), CheckDone(""), AdapterDone("a@1", "")]
        it.send(Check())
        assert await it.hear() == CheckDone("something was closed")


async def test_a_parent_that_does_not_read_stops_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MOST_UNREAD_BYTES", 1 << 14)
    async with parent() as it:
        it.send(Start(1, work(1000, 10_000_000)), Start(2, work(1000, 10_000_000)))
        made = -1
        async with asyncio.timeout(10):
            while made != it.model.made or not made:
                made = it.model.made
                await asyncio.sleep(0.2)
        assert made < 2_000_000, "it went on without being read"
        it.send(Cancel(1), Cancel(2))
        tokens, ended = 0, 0
        while ended < 2:
            step = await it.stepped()
            tokens += len(step.token_ids)
            ended += len(step.ended)
        assert tokens == it.model.made or tokens == made
    assert sorted(it.model.closed) == [1, 2]


@pytest.mark.parametrize(("told", "reason"), [(ValueError("out of blocks"), "out of blocks"), (None, "has ended")])
async def test_the_end_of_the_model_is_told(told: Exception | None, reason: str) -> None:
    async with parent() as it:
        it.send(Start(1, work(1, 10_000_000)))
        await it.stepped()
        it.model.told.put_nowait(told)
        message: Down = await it.hear()
        while not isinstance(message, Broken):
            message = await it.hear()
        assert reason in message.reason
    assert it.child.result() == 1
    assert it.model.closed == [1]


async def test_a_message_that_is_too_long_ends_the_child() -> None:
    async with parent() as it:
        it.send(Start(1, work(1, 10)))
        it.writer.write(b"\xff\xff\xff\xff")
    assert it.child.result() == 0


def test_finish_reasons_have_the_names_of_the_wire() -> None:
    assert {reason.name.lower() for reason in FinishReason} == {"stop", "length"}
