"""A work inside a fast engine; when one needs looking at; and the longest steps of that engine. Pure."""

from bisect import bisect_left
from collections.abc import Sequence as Hashes
from heapq import heappop, heappush

from services.simulator.record import Record

TRIM = 512
"""Entries of Longest beyond which the oldest are thrown away."""


class Sequence:
    """A work inside the engine, as services.executor.simulated.batch.Sequence."""

    __slots__ = (
        "blocks", "cached_tokens", "computed", "deadline", "delta", "due", "end", "entered", "hashes",
        "joined", "produced", "prompt", "published", "record", "told", "work_id",
    )  # fmt: skip

    def __init__(
        self, work_id: int, record: Record, prompt: int, resumed: int, end: int, hashes: Hashes[int], deadline: float
    ) -> None:
        self.work_id = work_id
        self.record = record
        self.prompt = prompt
        """Tokens."""
        self.produced = resumed
        """Tokens of the answer when it last entered the batch."""
        self.end = end
        """Tokens of the whole answer."""
        self.hashes = hashes
        """Of the prompt's full blocks."""
        self.deadline = deadline
        self.told = resumed
        """Tokens of the answer that have been passed on."""
        self.computed = 0
        """Tokens whose keys and values are there; counted until it decodes."""
        self.published = 0
        """Blocks that others can find."""
        self.blocks = 0
        self.cached_tokens = 0
        self.entered = False
        """Whether it was let in once."""
        self.joined = 0
        """The step that made its first token here; 0 while it does not decode."""
        self.delta = 0
        """Position of its next token, less the number of the step that makes it."""
        self.due = 0
        """The step at which it needs looking at."""

    @property
    def to_compute(self) -> int:
        """Tokens that the engine takes as the prompt."""
        return self.prompt + self.produced


class Calendar:
    """Who needs looking at in which step: those who are due in the same one in the order in which they were added.
    An entry counts as long as its sequence is due then. Bounded by the entries of the steps to come."""

    __slots__ = ("_added", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Sequence]] = []
        self._added = 0

    def add(self, sequence: Sequence) -> None:
        """Notes `sequence.due`."""
        self._added += 1
        heappush(self._heap, (sequence.due, self._added, sequence))

    def due(self, step: int) -> list[Sequence]:
        """Takes out who is due; each is to be added again, or to leave."""
        due, heap = list[Sequence](), self._heap
        while heap and heap[0][0] <= step:
            day, _, sequence = heappop(heap)
            if sequence.due == day:
                sequence.due = 0  # an older entry of a step that is due again does not count a second time
                due.append(sequence)
        return due

    def next(self) -> int:
        """The next step in which somebody is due; there must be one."""
        heap = self._heap
        while heap[0][2].due != heap[0][0]:
            heappop(heap)
        return heap[0][0]


class Longest:
    """The longest step since a given one, in constant time on average: a monotonic stack.

    Bounded: of more than TRIM entries half are forgotten, the oldest, and with them the longest step of a
    sequence that began before; as the entries get shorter from one to the next, it then has a value that is
    too small. That takes a run of more than TRIM steps each shorter than the one before.
    """

    __slots__ = ("_durations", "_steps")

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._durations: list[float] = []

    def add(self, step: int, duration_s: float) -> None:
        """A step has ended; its number is greater than those before."""
        steps, durations = self._steps, self._durations
        while durations and durations[-1] <= duration_s:
            durations.pop()
            steps.pop()
        steps.append(step)
        durations.append(duration_s)
        if len(steps) > TRIM:
            del steps[: TRIM // 2], durations[: TRIM // 2]

    def since(self, step: int) -> float:
        """Duration of the longest step from this one on, in seconds; 0 if there was none."""
        index = bisect_left(self._steps, step)
        return self._durations[index] if index < len(self._steps) else 0.0
