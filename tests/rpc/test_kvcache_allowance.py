"""Blocks that a batcher holds in advance, between real processes' parts: who waits for the manager, who gives back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.batcher import kvcache_memory
from services.batcher.kvcache_memory import CALM_PERIODS, KvCacheMemory
from services.batcher.memory import Ask, Reply
from services.kvcache.trust import COMPARISONS
from tests.rpc.test_kvcache import PATIENT_S, Executor, Manager, managing, until

CAPACITY = 100


class Works:
    """A batcher's works, and the answers that they got."""

    def __init__(self, manager: Manager, name: str, budget_s: float = PATIENT_S) -> None:
        self.memory = KvCacheMemory(name, manager.dialer, lambda: manager.endpoint, budget_s)
        self.replies: dict[int, Reply | None] = {}

    def ask(self, work: int, blocks: int, hashes: tuple[int, ...] = ()) -> bool:
        """Whether it was answered at once."""
        self.replies.pop(work, None)
        ask = Ask(work, "p", hashes, "e", blocks)
        self.memory.ask(ask, lambda reply: self.replies.update({work: reply}))
        return work in self.replies

    async def reserved(self, work: int, blocks: int) -> bool:
        """Whether the manager said yes, sooner or later."""
        self.ask(work, blocks)
        await until(lambda: work in self.replies)
        reply = self.replies[work]
        return reply is not None and reply.reserved


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    async with managing() as one:
        yield one


@pytest.fixture(autouse=True)
async def executor(manager: Manager) -> AsyncIterator[Executor]:
    one = Executor(manager, capacity=CAPACITY)
    await until(lambda: bool(manager.memory.ledger.capacity("e", "p")))
    yield one
    await one.reporter.close()


@pytest.fixture
async def works(manager: Manager) -> AsyncIterator[Works]:
    one = Works(manager, "b")
    await until(lambda: one.memory.up)
    yield one
    await one.memory.close()


def reserved(manager: Manager) -> int:
    return manager.memory.ledger.reserved("e", "p")


async def test_only_the_first_waits_and_in_the_end_all_is_given_back(
    manager: Manager, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvcache_memory, "SETTLE_S", 0.02)
    assert not works.ask(1, 10)
    await until(lambda: works.replies.get(1) == Reply(True, None, 90))
    assert await works.reserved(2, 10)
    assert works.ask(3, 5), "that is there in advance"
    assert 25 <= reserved(manager) <= 40
    works.memory.release(1)
    assert works.ask(4, 10), "another has left that"
    for work in (2, 3, 4):
        works.memory.release(work)
    await until(lambda: reserved(manager) == 0)
    assert await works.reserved(5, CAPACITY), "everything is there again"


async def test_those_that_come_together_are_asked_for_in_one(manager: Manager, works: Works) -> None:
    for work in range(9):
        works.ask(work, 12)
    await until(lambda: len(works.replies) == 9)
    said = [reply is not None and reply.reserved for reply in works.replies.values()]
    assert sorted(said) == [False] + [True] * 8
    assert not works.replies[8].reserved, "those in front go first"  # type: ignore[union-attr]
    assert reserved(manager) == 96
    assert await works.reserved(9, 4)
    works.memory.release(0)
    assert await works.reserved(1, 24), "it grows"
    assert not await works.reserved(2, 24)
    works.memory.release(2)
    assert works.ask(10, 12), "refused growth had left it what it had"


async def test_what_another_lacks_is_given_back(manager: Manager, works: Works) -> None:
    other = Works(manager, "other")
    await until(lambda: other.memory.up)
    assert await works.reserved(1, 10)
    assert await works.reserved(2, 10)
    works.memory.release(2)
    assert reserved(manager) > 20
    assert not await other.reserved(1, 90), "it is there, and is not used"
    await until(lambda: reserved(manager) == 10)
    assert await other.reserved(2, 90)
    await other.memory.close()


async def test_a_new_manager_hears_of_what_works_have_and_of_no_more(manager: Manager, works: Works) -> None:
    assert await works.reserved(1, 10)
    assert await works.reserved(2, 10)
    await manager.kill()
    await until(lambda: not works.memory.up)
    assert works.ask(3, 1)
    assert works.replies[3] is None, "nobody is there"
    works.memory.release(2)
    works.memory.release(3)
    await manager.start()
    await until(lambda: reserved(manager) == 10)
    works.memory.release(1)


async def test_who_waits_when_the_manager_goes_goes_on_without(manager: Manager, works: Works) -> None:
    assert await works.reserved(1, 10)
    works.ask(2, 80)
    works.ask(3, 5)
    works.memory._consultation._stream.restart()
    await until(lambda: len(works.replies) == 3)
    assert works.replies[2] is works.replies[3] is None
    await until(lambda: works.memory.up)
    await until(lambda: reserved(manager) == 10)
    assert await works.reserved(4, 90)


async def test_an_answer_that_is_late_is_not_waited_for_and_leaves_nothing_behind(manager: Manager) -> None:
    works = Works(manager, "late", budget_s=0.0)
    await until(lambda: works.memory.up)
    assert not await works.reserved(1, 60)
    assert works.replies[1] is None
    works.memory.release(1)
    works.memory._consultation._budget_s = PATIENT_S
    await until(lambda: reserved(manager) == 0)
    assert await works.reserved(2, CAPACITY)
    await works.memory.close()


async def test_a_work_that_ends_while_it_waits_gets_no_answer_and_no_blocks(manager: Manager, works: Works) -> None:
    works.ask(1, 60)
    works.memory.release(1)
    assert await works.reserved(2, CAPACITY)
    assert list(works.replies) == [2]


async def test_now_and_then_a_work_is_compared_with_what_the_index_says(
    manager: Manager, executor: Executor, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = manager.memory.trust
    for work in range(4):
        works.ask(work, 1, (1, 2, 3))
    await until(lambda: promised.promised("b") == 1 and len(works.replies) == 4)
    monkeypatch.setattr(kvcache_memory, "COMPARE_S", 0.0)
    for work in range(10, 10 + COMPARISONS):
        works.ask(work, 1, (1, 2, 3))
    await until(lambda: promised.promised("b") == 1 + COMPARISONS)
    for work in range(10 + COMPARISONS):
        works.memory.release(work, 30)
    await until(lambda: promised.promised("b") == 0)
    await until(lambda: executor.snapshots == 2)  # much more was found than the index says


async def test_who_leaves_gives_back_what_no_work_has(manager: Manager) -> None:
    works = Works(manager, "leaves")
    await until(lambda: works.memory.up)
    assert await works.reserved(1, 10)
    assert await works.reserved(2, 10)
    assert reserved(manager) > 20
    works.memory.release(2)
    await works.memory.close()
    await until(lambda: reserved(manager) == 10)


async def test_after_a_lack_nothing_is_held_in_advance_for_a_while(
    manager: Manager, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvcache_memory, "SETTLE_S", 0.01)
    assert await works.reserved(1, 10)
    works.memory._recalled("e", "p")
    assert await works.reserved(2, 10)
    assert reserved(manager) == 20
    await asyncio.sleep(0.01 * (CALM_PERIODS + 2))
    assert await works.reserved(3, 10)
    await until(lambda: reserved(manager) > 30)
