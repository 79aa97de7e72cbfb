"""Which adapters lie in memory, and which go: any order of asks, against a plain account of who was used when."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.executor.adapter_cache import AdapterCache, Asked, Place

BUDGET = 10
SIZES = {"a": 3, "b": 4, "c": 5, "d": 1, "huge": 11}
NAMES = st.sampled_from(sorted(SIZES))


def loaded(*adapters: str, budget: int = BUDGET) -> AdapterCache:
    """A cache in which these lie, asked for in this order."""
    cache = AdapterCache(budget)
    for adapter in adapters:
        assert cache.ask(adapter, SIZES[adapter]).place is Place.LOAD
        cache.loaded(adapter)
    return cache


def test_an_adapter_comes_and_is_here() -> None:
    cache = AdapterCache(BUDGET)
    assert cache.ask("a", 3) == Asked(Place.LOAD, [])
    assert cache.ask("a", 3).place is Place.COMING
    cache.loaded("a")
    assert cache.ask("a", 3).place is Place.HERE


def test_the_least_recently_used_goes_and_no_more_than_must() -> None:
    cache = loaded("a", "b", "d")
    cache.ask("a", 3)
    assert cache.ask("c", 5) == Asked(Place.LOAD, ["b"])
    assert list(cache.residents) == ["d", "a", "c"]


def test_what_has_works_stays_even_if_it_was_used_longest_ago() -> None:
    cache = loaded("a", "b", "d")
    cache.begin("a")
    assert cache.ask("c", 5).evict == ["b"]
    cache.loaded("c")
    cache.begin("c")
    assert cache.ask("b", 4) == Asked(Place.FULL), "d alone is not enough, so nothing goes"
    assert "d" in cache.residents
    cache.end("a")
    assert cache.ask("b", 4).evict == ["a"]


def test_what_is_on_its_way_is_not_sent_back() -> None:
    cache = AdapterCache(BUDGET)
    cache.ask("c", 5)
    cache.ask("b", 4)
    assert cache.ask("a", 3).place is Place.FULL


def test_larger_than_everything_is_told_from_full() -> None:
    cache = loaded("c")
    cache.begin("c")
    assert cache.ask("huge", 11).place is Place.TOO_LARGE
    assert cache.ask("e", 10).place is Place.FULL


def test_a_load_that_failed_gives_its_memory_back() -> None:
    cache = AdapterCache(BUDGET)
    cache.ask("c", 10)
    cache.failed("c")
    assert cache.used_bytes == 0
    assert cache.ask("b", 10).place is Place.LOAD


def test_only_what_is_idle_and_here_is_forgotten() -> None:
    cache = loaded("a")
    cache.ask("b", 4)
    cache.begin("a")
    assert [cache.forget(name) for name in ("a", "b", "nobody")] == [False, False, False]
    cache.end("a")
    assert cache.forget("a")
    assert "a" not in cache.residents


def test_a_smaller_budget_takes_idle_ones_and_waits_for_the_others() -> None:
    cache = loaded("a", "b", "d")
    cache.begin("b")
    cache.budget_bytes = 3
    assert cache.excess() == ["a", "d"]
    assert cache.used_bytes == 4, "b has a work"
    cache.check_integrity()
    cache.end("b")
    assert cache.excess() == ["b"]
    assert cache.excess() == []


class Books(RuleBasedStateMachine):
    """Asks, loads that end well or badly, works and changes of the budget, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = AdapterCache(BUDGET)
        self.order: list[str] = []
        """Who has memory, least recently asked for first."""
        self.works = dict.fromkeys(SIZES, 0)
        self.here: set[str] = set()

    @rule(adapter=NAMES)
    def ask(self, adapter: str) -> None:
        idle = [name for name in self.order if name in self.here and not self.works[name]]
        asked = self.cache.ask(adapter, SIZES[adapter])
        match asked.place:
            case Place.HERE:
                assert adapter in self.here
            case Place.COMING:
                assert adapter in self.order
                assert adapter not in self.here
            case Place.LOAD:
                count = len(asked.evict)
                assert list(asked.evict) == idle[:count], "in the order of use"
                kept = sum(SIZES[name] for name in self.order) - sum(SIZES[name] for name in idle[: count - 1])
                assert not count or kept + SIZES[adapter] > self.cache.budget_bytes, "one fewer would have done"
                self.order = [name for name in self.order if name not in asked.evict]
                self.here -= set(asked.evict)
            case Place.FULL:
                busy = sum(SIZES[name] for name in self.order if name not in idle)
                assert busy + SIZES[adapter] > self.cache.budget_bytes
            case Place.TOO_LARGE:
                assert SIZES[adapter] > self.cache.budget_bytes
        if asked.place in (Place.HERE, Place.COMING, Place.LOAD):
            self.order = [*(name for name in self.order if name != adapter), adapter]

    @rule(adapter=NAMES, well=st.booleans())
    def end_load(self, adapter: str, well: bool) -> None:
        if adapter not in self.order or adapter in self.here:
            return
        if well:
            self.cache.loaded(adapter)
            self.here.add(adapter)
            self._leave(self.cache.excess())
        else:
            self.cache.failed(adapter)
            self.order.remove(adapter)

    @rule(adapter=NAMES)
    def begin(self, adapter: str) -> None:
        if adapter in self.here:
            self.cache.begin(adapter)
            self.works[adapter] += 1

    @rule(adapter=NAMES)
    def end(self, adapter: str) -> None:
        if self.works[adapter]:
            self.cache.end(adapter)
            self.works[adapter] -= 1
            self._leave(self.cache.excess())

    @rule(adapter=NAMES)
    def forget(self, adapter: str) -> None:
        could = adapter in self.here and not self.works[adapter]
        assert self.cache.forget(adapter) == could
        self._leave([adapter] if could else [])

    @rule(budget=st.integers(0, 15))
    def rebudget(self, budget: int) -> None:
        self.cache.budget_bytes = budget
        self._leave(self.cache.excess())

    def _leave(self, adapters: object) -> None:
        assert isinstance(adapters, list)
        assert all(name in self.here and not self.works[name] for name in adapters)
        self.order = [name for name in self.order if name not in adapters]
        self.here -= set(adapters)

    @invariant()
    def the_books_add_up(self) -> None:
        # A load that was begun under a larger budget, and has not ended, may stand above a smaller one.
        if self.here == set(self.order):
            self.cache.check_integrity()
        assert list(self.cache.residents) == self.order
        assert {name for name, resident in self.cache.residents.items() if resident.loaded} == self.here
        assert {name: resident.works for name, resident in self.cache.residents.items()} == {
            name: self.works[name] for name in self.order
        }


Books.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
test_books = Books.TestCase
