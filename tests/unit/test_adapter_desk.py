"""Adapters are loaded when works ask for them, by an engine whose loads end when the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from libs.catalogue import ModelSpec
from libs.clock import ManualClock
from libs.errors import HeadraceError, NoExecutor, StageUnavailable
from libs.tasks import Tasks
from services.executor.adapter_desk import FAILED_S, PATIENCE_S, AdapterDesk
from services.executor.engine import Capabilities, Capacity, Exactness, LoadFailed
from tests.unit.test_host import HandRunner

BASE = ModelSpec("m", "simulated:", 4096, 100, 16, 8, 512)


def adapter(name: str, memory_bytes: int = 4, version: str = "1") -> ModelSpec:
    return replace(BASE, name=name, base="m", memory_bytes=memory_bytes, version=version)


ALL = {spec.adapter: spec for spec in (adapter("a"), adapter("b"), adapter("c"), adapter("huge", 11))}


class SlowRunner(HandRunner):
    """An engine that loads and unloads adapters when the test lets it."""

    capacity = Capacity(4, 100, 16, Exactness.EXACT, adapter_slots=4)
    capabilities = Capabilities(Exactness.EXACT, adapters="batch")

    def __init__(self) -> None:
        super().__init__()
        self.here: set[str] = set()
        self.calls: list[str] = []
        self.faults: list[Exception] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.inside = 0

    async def load_adapter(self, adapter: ModelSpec) -> None:
        async with self._call(f"load {adapter.adapter}"):
            if self.faults:
                raise self.faults.pop(0)
            self.here.add(adapter.adapter)

    async def unload_adapter(self, adapter: str) -> None:
        async with self._call(f"unload {adapter}"):
            self.here.discard(adapter)

    @asynccontextmanager
    async def _call(self, what: str) -> AsyncIterator[None]:
        self.calls.append(what)
        self.inside += 1
        assert self.inside == 1, "one call after the other"
        try:
            await self.may_go_on.wait()
            await asyncio.sleep(0)
            yield
        finally:
            self.inside -= 1


class Rig:
    """A desk with room for two adapters of 4 bytes."""

    def __init__(self) -> None:
        self.runner, self.clock, self.tasks = SlowRunner(), ManualClock(), Tasks()
        self.asks: list[tuple[str, str]] = []
        self.changes = 0
        self.desk = AdapterDesk(
            self.runner, 10, "m", self.tasks, self.clock, lambda model, how, _: self.asks.append((model, how)),
            self._changed,
        )  # fmt: skip
        self.desk.know(ALL, 10)
        self.told: dict[str, list[HeadraceError | None]] = {}

    def _changed(self) -> None:
        self.changes += 1

    def take(self, who: str, adapter: str) -> None:
        self.told[who] = []
        self.desk.take(adapter, self.told[who].append)

    @property
    def ready(self) -> list[str]:
        """Who may start, in order of asking."""
        return [who for who, told in self.told.items() if told == [None]]

    def error(self, who: str) -> HeadraceError:
        (error,) = self.told[who]
        assert error is not None
        return error

    async def settle(self) -> None:
        """Until nothing is loaded or unloaded any more; the books and the engine agree then."""
        async with asyncio.timeout(5):
            while len(self.tasks):
                await asyncio.sleep(0)
        assert {name for name, resident in self.desk.residents.items() if resident.loaded} == self.runner.here
        self.desk._cache.check_integrity()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    it = Rig()
    yield it
    await it.tasks.close()


async def test_the_first_ask_loads_and_the_next_finds_it(rig: Rig) -> None:
    rig.take("1", "a@1")
    assert not rig.ready
    await rig.settle()
    assert rig.ready == ["1"]
    rig.take("2", "a@1")
    assert rig.ready == ["1", "2"]
    assert rig.runner.calls == ["load a@1"]
    assert rig.asks == [("m", "load"), ("m", "hit")]
    assert rig.desk.residents["a@1"].works == 2
    assert rig.changes == 1


async def test_who_asks_while_it_is_on_its_way_waits_for_the_same_load(rig: Rig) -> None:
    rig.runner.may_go_on.clear()
    for who in "123":
        rig.take(who, "a@1")
    await asyncio.sleep(0.01)
    assert not rig.ready
    rig.runner.may_go_on.set()
    await rig.settle()
    assert rig.ready == ["1", "2", "3"]
    assert rig.runner.calls == ["load a@1"]


async def test_what_was_used_longest_ago_makes_room(rig: Rig) -> None:
    for who, name in (("1", "a@1"), ("2", "b@1")):
        rig.take(who, name)
        await rig.settle()
        rig.desk.release(name)
    rig.take("3", "c@1")
    await rig.settle()
    assert rig.runner.calls[-2:] == ["unload a@1", "load c@1"]
    assert set(rig.desk.residents) == {"b@1", "c@1"}


async def test_while_all_have_works_one_waits_until_a_work_ends(rig: Rig) -> None:
    rig.take("1", "a@1")
    rig.take("2", "b@1")
    rig.take("3", "c@1")
    rig.take("4", "c@1")
    await rig.settle()
    assert rig.ready == ["1", "2"]
    rig.desk.release("b@1")
    await rig.settle()
    assert rig.ready == ["1", "2", "3", "4"]
    assert rig.runner.calls == ["load a@1", "load b@1", "unload b@1", "load c@1"]


async def test_those_that_wait_are_served_in_order(rig: Rig) -> None:
    rig.take("1", "a@1")
    rig.take("2", "b@1")
    rig.desk.know({**ALL, "d@1": adapter("d"), "e@1": adapter("e")}, 10)
    for who, name in (("3", "c@1"), ("4", "d@1"), ("5", "e@1")):
        rig.take(who, name)
    await rig.settle()
    for expected in (["1", "2", "3"], ["1", "2", "3", "4"], ["1", "2", "3", "4", "5"]):
        rig.desk.release({3: "a@1", 4: "b@1", 5: "c@1"}[len(expected)])
        await rig.settle()
        assert rig.ready == expected


async def test_busy_adapters_do_not_keep_another_one_out_for_ever(rig: Rig) -> None:
    rig.take("1", "a@1")
    rig.take("2", "b@1")
    rig.take("3", "c@1")
    await rig.settle()
    rig.take("4", "a@1")
    assert rig.ready == ["1", "2", "4"], "for a while, who needs no load overtakes"
    rig.desk.release("a@1")
    rig.clock.advance(PATIENCE_S)
    rig.take("5", "a@1")
    rig.desk.release("a@1")
    await rig.settle()
    assert rig.ready == ["1", "2", "3", "4"], "a was idle for a moment"
    rig.desk.release("b@1")
    await rig.settle()
    assert rig.ready == ["1", "2", "3", "4", "5"]
    assert rig.runner.calls[2:] == ["unload a@1", "load c@1", "unload b@1", "load a@1"]


async def test_one_that_is_too_large_is_refused_at_once(rig: Rig) -> None:
    rig.take("1", "huge@1")
    assert isinstance(rig.error("1"), StageUnavailable)
    assert "larger than adapter_memory_bytes" in rig.error("1").message
    assert not rig.runner.calls


async def test_one_that_is_not_known_is_refused_at_once(rig: Rig) -> None:
    rig.take("1", "nobody@1")
    assert isinstance(rig.error("1"), NoExecutor)


@pytest.mark.parametrize(
    ("fault", "why"), [(LoadFailed("its rank is 64"), "its rank is 64"), (KeyError("a bug"), "KeyError in the engine")]
)
async def test_a_failure_is_remembered_for_a_while_and_then_tried_again(rig: Rig, fault: Exception, why: str) -> None:
    rig.runner.faults = [fault]
    rig.take("1", "a@1")
    rig.take("2", "a@1")
    await rig.settle()
    assert rig.error("1").message == rig.error("2").message == f"the adapter a cannot be loaded: {why}"
    assert isinstance(rig.error("1"), StageUnavailable)
    rig.clock.advance(FAILED_S - 0.1)
    rig.take("3", "a@1")
    assert why in rig.error("3").message
    assert len(rig.runner.calls) == 1
    rig.clock.advance(0.1)
    rig.take("4", "a@1")
    await rig.settle()
    assert rig.ready == ["4"]
    assert rig.asks == [("m", "failed"), ("m", "load")]


async def test_a_failure_makes_room_for_those_that_wait(rig: Rig) -> None:
    rig.take("1", "a@1")
    await rig.settle()
    rig.runner.faults = [LoadFailed("no")]
    rig.take("2", "b@1")
    rig.take("3", "c@1")
    await rig.settle()
    assert rig.ready == ["1", "3"]


async def test_an_engine_that_cannot_unload_leaves_nobody_waiting(rig: Rig) -> None:
    async def fail(adapter: str) -> None:
        raise KeyError(adapter)

    for who, name in (("1", "a@1"), ("2", "b@1")):
        rig.take(who, name)
        await rig.settle()
        rig.desk.release(name)
    rig.runner.unload_adapter = fail  # type: ignore[method-assign]
    rig.take("3", "c@1")
    async with asyncio.timeout(5):
        while not rig.told["3"]:
            await asyncio.sleep(0)
    assert "KeyError in the engine" in rig.error("3").message


async def test_an_adapter_for_which_all_gave_up_is_loaded_and_idle(rig: Rig) -> None:
    told: list[object] = []
    done = told.append
    rig.runner.may_go_on.clear()
    rig.desk.take("a@1", done)
    await asyncio.sleep(0)
    rig.desk.give_up("a@1", done)
    rig.runner.may_go_on.set()
    await rig.settle()
    assert not told
    assert rig.desk.residents["a@1"].works == 0


async def test_what_gives_up_in_a_full_queue_takes_no_place_there(rig: Rig) -> None:
    rig.take("1", "a@1")
    rig.take("2", "b@1")
    await rig.settle()
    told: list[object] = []
    done = told.append
    for _ in range(100):
        rig.desk.take("c@1", done)
        rig.desk.give_up("c@1", done)
    assert not rig.desk._queue
    rig.desk.release("a@1")
    await rig.settle()
    assert not told
    assert "c@1" not in rig.desk.residents


async def test_one_that_may_not_be_asked_for_any_more_goes_when_nobody_uses_it(rig: Rig) -> None:
    rig.take("1", "a@1")
    rig.take("2", "b@1")
    await rig.settle()
    rig.desk.release("b@1")
    rig.desk.know({"c@1": ALL["c@1"]}, 10)
    await rig.settle()
    assert set(rig.desk.residents) == {"a@1"}, "b goes at once, a has a work"
    rig.take("3", "a@1")
    assert rig.ready == ["1", "2", "3"], "while it lies here, it may be used: a work was sent before the news"
    rig.desk.release("a@1")
    rig.desk.release("a@1")
    await rig.settle()
    assert not rig.desk.residents
    assert rig.runner.calls[-1] == "unload a@1"


async def test_one_that_is_withdrawn_on_its_way_goes_again(rig: Rig) -> None:
    told: list[object] = []
    done = told.append
    rig.runner.may_go_on.clear()
    rig.desk.take("a@1", done)
    await asyncio.sleep(0)
    rig.desk.know({}, 10)
    rig.desk.give_up("a@1", done)
    rig.runner.may_go_on.set()
    await rig.settle()
    assert rig.runner.calls == ["load a@1", "unload a@1"]


async def test_one_that_goes_and_comes_back_is_not_unloaded_behind_its_load(rig: Rig) -> None:
    """The engine's calls have to be in the order of the books, however long each takes."""
    rig.desk.know({**ALL, "d@1": adapter("d", 8)}, 10)
    for who, name in (("1", "a@1"), ("2", "b@1")):
        rig.take(who, name)
        await rig.settle()
        rig.desk.release(name)
    rig.runner.faults = [LoadFailed("no")]
    rig.runner.may_go_on.clear()
    rig.take("3", "d@1")  # evicts a and b, one after the other
    await asyncio.sleep(0)
    rig.desk.know({"b@1": ALL["b@1"]}, 20)
    rig.take("4", "b@1")  # which has left the books, and is on its way out
    rig.runner.may_go_on.set()
    await rig.settle()
    assert rig.ready == ["1", "2", "4"]
    assert rig.runner.here == {"b@1"}


async def test_a_smaller_budget_holds_at_once_for_what_is_idle(rig: Rig) -> None:
    rig.take("1", "a@1")
    rig.take("2", "b@1")
    await rig.settle()
    rig.desk.know(ALL, 3)
    assert len(rig.desk.residents) == 2
    rig.desk.release("a@1")
    await rig.settle()
    assert set(rig.desk.residents) == {"b@1"}
    rig.take("3", "a@1")
    assert "larger" in rig.error("3").message


async def test_what_is_on_its_way_when_the_budget_shrinks_goes_again(rig: Rig) -> None:
    told: list[object] = []
    done = told.append
    rig.runner.may_go_on.clear()
    rig.desk.take("a@1", done)
    await asyncio.sleep(0)
    rig.desk.give_up("a@1", done)
    rig.desk.know(ALL, 3)
    rig.runner.may_go_on.set()
    await rig.settle()
    assert not rig.desk.residents


async def test_a_larger_budget_serves_those_that_wait(rig: Rig) -> None:
    for who, name in (("1", "a@1"), ("2", "b@1"), ("3", "c@1")):
        rig.take(who, name)
    await rig.settle()
    assert rig.ready == ["1", "2"]
    rig.desk.know(ALL, 12)
    await rig.settle()
    assert rig.ready == ["1", "2", "3"]


async def test_behind_its_close_nothing_happens_any_more(rig: Rig) -> None:
    rig.take("1", "a@1")
    await rig.settle()
    rig.runner.may_go_on.clear()
    rig.take("2", "b@1")
    rig.take("3", "c@1")
    await asyncio.sleep(0)
    rig.desk.know({"b@1": ALL["b@1"], "c@1": ALL["c@1"]}, 10)
    rig.desk.close()
    rig.runner.may_go_on.set()
    rig.desk.release("a@1")
    async with asyncio.timeout(5):
        while len(rig.tasks):
            await asyncio.sleep(0)
    assert (rig.told["2"], rig.told["3"]) == ([], [])
    assert rig.runner.calls == ["load a@1", "load b@1"]
