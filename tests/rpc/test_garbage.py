"""What has ended leaves nothing to the garbage collector: its pauses would be a mesh's longest, and its waste keeps
memory cold."""

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from libs.client import ModelUnknown
from libs.errors import Cancelled
from libs.lane.work import Outcome
from tests.rpc.chain import Answers, chain, work
from tests.rpc.test_waiting import ANSWER, both_doors, door

TIMES = 20
OURS = ("services.", "libs.lane", "libs.rpc", "libs.streams", "libs.telemetry", "libs.tokens", "libs.kvcache")
"""Packages of which no object may be left: all that is made for a request, but for its client."""


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """Counts by type, at the end, what only a collector frees."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = [type(each) for each in gc.garbage]
        found.update(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if kind.__module__.startswith(OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def left_by(act: Callable[[], Awaitable[None]]) -> Counter[str]:
    """What TIMES of something leave to a collector, by type; behind the first time, which may leave what is kept."""
    await act()
    with garbage() as found:
        for _ in range(TIMES):
            await act()
        await asyncio.sleep(0.05)
    return found


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def test_a_ring_is_found() -> None:
    with garbage() as found:
        first, second = Answers(), Answers()
        first.other, second.other = second, first  # type: ignore[attr-defined]
        first.__class__.__module__, module = "libs.lane", first.__class__.__module__
        del first, second
    Answers.__module__ = module
    assert found == {"libs.lane.Answers": 2}


@both_doors
async def test_an_answer(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:

        async def ask() -> None:
            answer = asyncio.create_task(client.generate("letters", prompt="x").complete())
            await it.sent(len(it.lane.sent) + 1)
            it.say(ANSWER)
            it.end()
            assert (await answer).text == ANSWER

        assert not await left_by(ask)


@both_doors
async def test_a_client_that_leaves(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:

        async def ask() -> None:
            answer = asyncio.create_task(client.generate("letters", prompt="x").complete())
            await it.sent(len(it.lane.sent) + 1)
            answer.cancel()
            await until(lambda: it.lane.cancels)
            it.lane.end(it.lane.cancels.pop(), Outcome(error=Cancelled("as it was told")))
            with pytest.raises(asyncio.CancelledError):
                await answer

        assert not await left_by(ask)


@both_doors
async def test_a_refusal(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:

        async def ask() -> None:
            with pytest.raises(ModelUnknown):
                await client.generate("nothing", prompt="x").complete()

        assert not await left_by(ask)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_work(cancelled: bool) -> None:
    async with chain() as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)

        async def run() -> None:
            index = len(answers.outcomes)
            lane.submit(index, work(index))
            await answers.until(lambda a: a.tokens.get(index))
            if cancelled:
                lane.cancel(index)
            await answers.until(lambda a: index in a.outcomes)

        assert not await left_by(run)
