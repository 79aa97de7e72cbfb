"""Which adapters lie in the memory of one copy, and which makes room. Pure.

Least recently used goes first (as in S-LoRA and LoRAX, per request and not per step); an adapter with works on
it never goes. Its memory is the catalogue's: what the budget promises, the copy has.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto


class Place(Enum):
    """Where an asked adapter stands."""

    HERE = auto()
    """Loaded: a work may start."""
    COMING = auto()
    """Being loaded: a work waits."""
    LOAD = auto()
    """To be loaded now, once what has to go has gone; it counts as coming from here on."""
    FULL = auto()
    """Every adapter in memory has works: a work waits until one ends."""
    TOO_LARGE = auto()
    """Larger than the whole budget."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer to `ask`."""

    place: Place
    evict: Sequence[str] = ()
    """With LOAD: what is to be unloaded first; not here any more."""


@dataclass(slots=True)
class Resident:
    """An adapter in memory, or on its way there."""

    memory_bytes: int
    works: int = 0
    loaded: bool = False


class AdapterCache:
    """The adapters of one copy; bounded by their bytes.

    Args:
        budget_bytes: What they may use together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first

    @property
    def residents(self) -> Mapping[str, Resident]:
        """Everything that has memory, least recently used first."""
        return self._residents

    @property
    def used_bytes(self) -> int:
        """What they use together."""
        return sum(resident.memory_bytes for resident in self._residents.values())

    def ask(self, adapter: str, memory_bytes: int) -> Asked:
        """Asks for an adapter that a work needs. With LOAD the books are changed at once."""
        if (resident := self._residents.get(adapter)) is not None:
            self._residents.move_to_end(adapter)
            return Asked(Place.HERE if resident.loaded else Place.COMING)
        if memory_bytes > self.budget_bytes:
            return Asked(Place.TOO_LARGE)
        missing = self.used_bytes + memory_bytes - self.budget_bytes
        evict: list[str] = []
        for name, other in self._residents.items():
            if missing <= 0:
                break
            if other.loaded and not other.works:
                evict.append(name)
                missing -= other.memory_bytes
        if missing > 0:
            return Asked(Place.FULL)
        for name in evict:
            del self._residents[name]
        self._residents[adapter] = Resident(memory_bytes)
        return Asked(Place.LOAD, evict)

    def loaded(self, adapter: str) -> None:
        """It is in memory now."""
        self._residents[adapter].loaded = True

    def failed(self, adapter: str) -> None:
        """It could not be loaded: its memory is free again."""
        del self._residents[adapter]

    def begin(self, adapter: str) -> None:
        """A work starts with it."""
        self._residents[adapter].works += 1

    def end(self, adapter: str) -> None:
        """A work with it has ended."""
        self._residents[adapter].works -= 1

    def forget(self, adapter: str) -> bool:
        """Takes an adapter out that nobody may ask for any more; False while it is in use or on its way."""
        resident = self._residents.get(adapter)
        if resident is None or resident.works or not resident.loaded:
            return False
        del self._residents[adapter]
        return True

    def excess(self) -> Sequence[str]:
        """Takes out what has to go because the budget has shrunk: idle ones, least recently used first."""
        evict: list[str] = []
        over = self.used_bytes - self.budget_bytes
        for name, resident in self._residents.items():
            if over <= 0:
                break
            if resident.loaded and not resident.works:
                evict.append(name)
                over -= resident.memory_bytes
        for name in evict:
            del self._residents[name]
        return evict

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not add up. For tests."""
        idle = [name for name, resident in self._residents.items() if resident.loaded and not resident.works]
        assert self.used_bytes <= self.budget_bytes or not idle, "more than the budget"
        assert all(r.works >= 0 and (r.loaded or not r.works) for r in self._residents.values()), "works without it"
