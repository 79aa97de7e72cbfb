"""What became of requests: one record each, and their sums by window. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.inference.v1 import inference_pb2 as pb
from tests.bench.soak.mix import LEFT, OK, Kind

REFUSED = "OVERLOADED"
MOST_FAULTS = 50
"""Kept with their text; the rest are counted."""


@dataclass(slots=True)
class Record:
    """One request as its client saw it; times are monotonic seconds."""

    kind: Kind
    request: pb.GenerateRequest
    door: str
    began: float
    first: float = 0.0
    ended: float = 0.0
    ends: int = 0
    behind: int = 0
    """Messages that came behind its end."""
    tokens: int = 0
    token_ids: int = 0
    log_probs: int = 0
    text: list[str] = field(default_factory=list)
    finish: pb.Finish | None = None
    result: str = ""
    said: str = ""

    def got(self, tokens: int, now: float) -> None:
        """A message with something of the answer came."""
        self.behind += self.ends
        self.tokens += tokens
        self.first = self.first or now

    def end(self, result: str, now: float, said: str = "") -> None:
        """It ended, or its client went."""
        self.ends += 1
        self.ended, self.result, self.said = now, result, said


def faults(record: Record) -> list[str]:
    """What is wrong with an answer, its result aside."""
    found = []
    if record.ends != 1:
        found.append(f"ended {record.ends} times")
    if record.behind:
        found.append(f"{record.behind} messages came behind its end")
    if record.result == OK and record.finish is None:
        found.append("ended without a finish")
    if record.result == OK and record.finish is not None:
        found += _against(record, record.finish)
    name = f"{record.kind.name}, {record.door}"
    return [f"{name}: {text}" for text in found]


def _against(record: Record, finish: pb.Finish) -> list[str]:
    request, counted = record.request, finish.usage.output_tokens
    found = []
    if not finish.stop and not finish.degradation.level and counted != request.sampling.max_tokens:
        found.append(f"{counted} tokens are counted, {request.sampling.max_tokens} were asked for")
    if record.token_ids and record.token_ids != counted and not finish.stop:
        found.append(f"{record.token_ids} token ids came, {counted} are counted")
    if request.log_probs and record.log_probs != counted:
        found.append(f"{record.log_probs} log-probabilities came, {counted} tokens are counted")
    text = "".join(record.text)
    found += [f"{stop!r} is in the answer, which ends before it" for stop in request.sampling.stop if stop in text]
    return found


@dataclass(slots=True)
class Window:
    """The requests that ended in a stretch of time."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and result."""
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    tokens: int = 0
    first_ms: dict[str, list[float]] = field(default_factory=lambda: {"session": [], "generate": []})
    whole_ms: list[float] = field(default_factory=list)
    late_ms: float = 0.0
    """The latest that the clients' own event loop woke."""
    cores: float = 0.0
    """That the clients used."""
    unsent: int = 0
    """Arrivals that found as many in flight as there may be."""

    def add(self, record: Record) -> None:
        """One that ended."""
        self.count(record.kind.name, record.result)
        self.tokens += record.tokens
        for fault in faults(record):
            self.wrong(fault)
        if record.result not in (*record.kind.allowed, OK, LEFT):
            self.wrong(f"{record.kind.name}, {record.door}: {record.result}: {record.said}", counts=False)
        if record.result == OK and record.kind.manner == "reads" and record.request.tier != pb.TIER_ASYNC:
            self.first_ms[record.door].append(((record.first or record.ended) - record.began) * 1000)
            if record.kind.timed:
                self.whole_ms.append((record.ended - record.began) * 1000)

    def count(self, kind: str, result: str) -> None:
        """One of a kind that has no record."""
        self.outcomes[kind, result] += 1

    def wrong(self, text: str, *, counts: bool = True) -> None:
        """Something is not as it should be; `counts` where no result tells it."""
        self.fault_count += counts
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text[:300])

    def summary(self, seconds: float, in_flight: int) -> dict[str, Any]:
        """For JSON. Latencies in ms, None without samples."""
        outcomes: dict[str, dict[str, int]] = {}
        for (kind, result), count in self.outcomes.items():
            outcomes.setdefault(kind, {})[result] = count
        ended = sum(self.outcomes.values())
        series: dict[str, float | None] = {
            "requests_per_s": ended / seconds,
            "answered_per_s": (ended - sum(self.outcomes[key] for key in self.outcomes if key[1] == REFUSED)) / seconds,
            "tokens_per_s": self.tokens / seconds, "in_flight": in_flight,
            "whole_p50_ms": rank(self.whole_ms, 0.5), "whole_p99_ms": rank(self.whole_ms, 0.99),
            "late_ms": self.late_ms, "client_cores": self.cores, "unsent": self.unsent,
        }  # fmt: skip
        for door, values in self.first_ms.items():
            series |= {f"first_{door}_p50_ms": rank(values, 0.5), f"first_{door}_p99_ms": rank(values, 0.99)}
        return {
            "series": series, "outcomes": outcomes, "faults": self.faults, "fault_count": self.fault_count,
            "ended": ended,
        }  # fmt: skip


def rank(values: Sequence[float], share: float) -> float | None:
    """The value that so large a share of them is below."""
    ordered = sorted(values)
    return ordered[min(math.floor(share * len(ordered)), len(ordered) - 1)] if ordered else None
