"""Which executors report, and whether anything of it was missed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from libs.kvcache.values import CacheInfo


class Verdict(Enum):
    """What to do with a batch of events."""

    TAKE = "take"
    ASK = "ask"
    """Something was missed just now: drop it and ask for a snapshot."""
    DROP = "drop"
    """It is old, or a snapshot has been asked for already."""


@dataclass(slots=True)
class ExecutorReport:
    """What is known of one executor's report."""

    pools: Mapping[str, CacheInfo] = field(default_factory=dict)
    """From its last snapshot."""
    sequence: int = 0
    """Of the last batch or snapshot taken in."""
    whole: bool = False
    """Whether nothing was missed since the last snapshot."""
    asked: bool = False
    """Whether a snapshot has been asked for on this stream."""
    stream: object | None = None
    """The newest stream; None when it ended."""


class Reports:
    """The executors' reports. A newer stream of an executor supersedes the older.

    Args:
        grace_s: Seconds that what an executor reported outlives its stream.
        max_executors: One more is refused.
    """

    def __init__(self, grace_s: float = 10.0, max_executors: int = 4096) -> None:
        self._grace_s = grace_s
        self._max_executors = max_executors
        self._executors: dict[str, ExecutorReport] = {}
        self._lapses: dict[str, float] = {}  # of those without a stream: when they are forgotten

    @property
    def executors(self) -> Mapping[str, ExecutorReport]:
        """By name."""
        return self._executors

    def connect(self, executor: str, stream: object) -> bool:
        """A stream of an executor begins; False when there are too many executors."""
        if executor not in self._executors and len(self._executors) >= self._max_executors:
            return False
        report = self._executors.setdefault(executor, ExecutorReport())
        self._lapses.pop(executor, None)
        report.stream, report.whole, report.asked = stream, False, False
        return True

    def owns(self, executor: str, stream: object) -> bool:
        """Whether this is the executor's newest stream."""
        report = self._executors.get(executor)
        return report is not None and report.stream is stream

    def disconnect(self, executor: str, stream: object, now: float) -> None:
        """A stream ended. Only the newest one counts."""
        if self.owns(executor, stream):
            self._executors[executor].stream = None
            self._lapses[executor] = now + self._grace_s

    def snapshot(self, executor: str, sequence: int, pools: Mapping[str, CacheInfo]) -> set[str]:
        """Takes in that everything is known; returns the pools that are gone since the last time."""
        report = self._executors[executor]
        gone = set(report.pools) - set(pools)
        report.pools, report.sequence, report.whole, report.asked = dict(pools), sequence, True, False
        return gone

    def events(self, executor: str, sequence: int) -> Verdict:
        """Says what to do with a batch, and takes its number in if it is to be taken."""
        report = self._executors[executor]
        if report.whole and sequence == report.sequence + 1:
            report.sequence = sequence
            return Verdict.TAKE
        if report.asked or (report.whole and sequence <= report.sequence):
            return Verdict.DROP
        return self.missed(executor)

    def missed(self, executor: str) -> Verdict:
        """Something was missed: a snapshot is wanted."""
        report = self._executors[executor]
        report.whole, report.asked = False, True
        return Verdict.ASK

    @property
    def lapsing(self) -> bool:
        """Whether a grace period runs."""
        return bool(self._lapses)

    def expire(self, now: float) -> list[tuple[str, ExecutorReport]]:
        """Forgets the executors whose grace period is over, and returns them."""
        gone = [name for name, lapse in self._lapses.items() if lapse <= now]
        for name in gone:
            del self._lapses[name]
        return [(name, self._executors.pop(name)) for name in gone]
