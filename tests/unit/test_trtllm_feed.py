"""What the engine tells beside its answers, read from iterators that end and must be told to go on."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor.trtllm import feed as feed_module
from services.executor.trtllm.compat import _first
from services.executor.trtllm.events import BlockNames, Prefix
from services.executor.trtllm.feed import EngineDied, Feed

SIZE = 2


class Items:
    """Ends when it is empty, and stays ended until it is told to go on."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._done = False

    def mark_undone(self) -> None:
        self._done = False

    def __aiter__(self) -> "Items":
        return self

    async def __anext__(self) -> Any:
        if self._done or not self.items:
            self._done = True
            raise StopAsyncIteration
        return self.items.pop(0)


class Llm:
    """Tells what a test puts into it."""

    def __init__(self) -> None:
        self.events = Items()
        self.stats = Items()
        self.asked = False

    def get_kv_cache_events_async(self, timeout: float) -> Items:
        assert self.asked, "KV Event IterationResult is not properly instantiated."
        return self.events

    def get_stats_async(self, timeout: float) -> Any:
        return self.stats if self.asked else nothing()


async def nothing() -> AsyncIterator[Any]:
    return
    yield


def stored(number: int) -> dict[str, Any]:
    """An event of a first block whose work has been submitted."""
    block = {"block_hash": 100 + number, "tokens": [{"token_id": number}, {"token_id": number}]}
    return {"event_id": number, "data": {"type": "stored", "parent_hash": None, "blocks": [block]}}


async def test_a_feed_goes_on_and_waits_for_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_EVENTS", 3)
    llm, names = Llm(), BlockNames(SIZE, 64)
    for number in range(12):
        names.submit(Prefix("", None, "", None, (number,)), [number, number])
    feed = Feed(llm, names)
    await asyncio.sleep(0.03)
    llm.asked = True
    llm.stats.items = [json.dumps({"iter": 4, "kvCacheStats": {"usedNumBlocks": 2}})]
    llm.events.items = [stored(number) for number in range(10)]
    async with asyncio.timeout(5):
        while not (feed.latest and len(llm.events.items) < 10):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(llm.events.items) == 6, "it read on although nobody took what it had read"
        assert feed.cache == {"usedNumBlocks": 2}
        told: list[int] = []
        async for events in feed.events():
            told += [name for event in events for name in event.hashes]
            if len(told) == 10 and not llm.events.items:
                llm.events.items = [stored(10)]
            if len(told) == 11:
                break
    assert told == list(range(11))
    await feed.close()


async def test_a_feed_that_cannot_be_read_is_the_end_of_the_engine() -> None:
    llm = Llm()
    llm.asked = True
    llm.stats.items = ["{"]
    feed = Feed(llm, BlockNames(SIZE, 64))
    events = feed.events()
    with pytest.raises(EngineDied, match="its statistics cannot be read: "):
        await anext(events)
    feed.die("a later reason")
    assert feed.fault.startswith("its statistics")
    await feed.close()


def test_what_no_module_has_is_nothing() -> None:
    assert _first(["no_such_module", "json"], "no_such_name") is None
    assert _first(["no_such_module", "json"], "loads") is json.loads
