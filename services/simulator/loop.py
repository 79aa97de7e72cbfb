"""Virtual time: what is to happen, in order of its time. Pure."""

from collections.abc import Callable
from heapq import heappop, heappush

Event = Callable[[], None]


class Loop:
    """The events of a simulation, and its clock (libs.clock.Clock).

    Events at the same moment happen in the order in which they were planned. Both views of the clock show the
    virtual time, which begins at 0.
    """

    __slots__ = ("_heap", "planned", "time")

    def __init__(self) -> None:
        self.time = 0.0
        """Virtual now, in seconds."""
        self.planned = 0
        """Events so far."""
        self._heap: list[tuple[float, int, Event]] = []

    def now(self) -> float:
        """Unix seconds, as the mesh's parts take them."""
        return self.time

    def monotonic(self) -> float:
        """Seconds."""
        return self.time

    def at(self, time: float, event: Event) -> None:
        """Plans an event. Raises ValueError for one in the past."""
        if time < self.time:
            raise ValueError(f"it is {self.time} s; nothing can be planned for {time} s")
        self.planned += 1
        heappush(self._heap, (time, self.planned, event))

    def after(self, delay_s: float, event: Event) -> None:
        """Plans an event; without delay it happens now."""
        if delay_s > 0:
            self.at(self.time + delay_s, event)
        else:
            event()

    def every(self, period_s: float, event: Event) -> None:
        """Plans an event that comes again and again, for the first time after one period."""

        def again() -> None:
            event()
            self.at(self.time + period_s, again)

        self.at(self.time + period_s, again)

    def step(self) -> bool:
        """Lets the next event happen; False when there is none."""
        if not self._heap:
            return False
        self.time, _, event = heappop(self._heap)
        event()
        return True
