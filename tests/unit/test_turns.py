"""Upkeep, turn by turn."""

import asyncio
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from libs import turns
from libs.tasks import Tasks


class Counted:
    """An action that can be waited for, and may fail."""

    def __init__(self) -> None:
        self.times = 0
        self.fails = False
        self._called = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self._called.set()
        if self.fails:
            raise RuntimeError("boom")

    async def next(self) -> None:
        self._called.clear()
        async with asyncio.timeout(5):
            await self._called.wait()


async def test_a_fault_ends_one_turn_only() -> None:
    tasks, action = Tasks(), Counted()
    action.fails = True
    with capture_logs() as logs:
        turns.every(tasks, 0.001, action, "upkeep")
        await action.next()
        await action.next()
        await tasks.close()
    assert {entry["event"] for entry in logs} == {"task failed in one turn"}
    assert logs[0]["task"] == "upkeep"


async def test_who_has_nothing_to_do_sleeps_until_it_is_stirred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "IDLE_S", 3600.0)
    tasks, action, work = Tasks(), Counted(), list[int]()
    stir = turns.while_busy(tasks, 0.001, action, lambda: bool(work), "upkeep")
    for _ in range(20):
        await asyncio.sleep(0.002)
    assert action.times == 0
    work.append(1)
    stir()
    for _ in range(3):
        await action.next()
    work.clear()
    await action.next()
    before = action.times
    for _ in range(20):
        await asyncio.sleep(0.002)
    assert action.times <= before + 1
    await tasks.close()


async def test_it_looks_even_where_nobody_stirs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "IDLE_S", 0.001)
    tasks, action = Tasks(), Counted()
    turns.while_busy(tasks, 3600.0, action, lambda: False, "upkeep")
    await action.next()
    await action.next()
    await tasks.close()


async def test_turns_of_one_process_come_together() -> None:
    loop = asyncio.get_running_loop()
    for seconds in (0.5, 1.0, 1.5, 5.0):
        begin = loop.time()
        wait, short = turns.until_next(seconds), turns.until_next(0.5)
        assert 0.1 * seconds < wait <= 1.1 * seconds
        off = (wait - short) % 0.5
        assert min(off, 0.5 - off) <= loop.time() - begin + 1e-6, "a turn of half a second falls on it"
        await asyncio.sleep(0.003)


async def test_a_timer_that_is_early_makes_no_second_turn() -> None:
    loop, seconds, times = asyncio.get_running_loop(), 0.02, list[float]()
    for _ in range(20):
        await asyncio.sleep(turns.until_next(seconds))
        times.append(loop.time())
    assert min(after - before for before, after in pairwise(times)) > 0.05 * seconds
