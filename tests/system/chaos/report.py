"""What came of a run, added up."""

from collections import Counter
from dataclasses import dataclass, field

from tests.system.chaos.history import Round


@dataclass(slots=True)
class Report:
    """Counts over all rounds."""

    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    tokens: int = 0
    resent: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    memory_growth: float = 0.0
    """The most that a process that lived on grew, in bytes; 0 when none did."""
    files_growth: int = 0
    tasks_growth: int = 0

    def add(self, one: Round, violations: list[str]) -> None:
        """Counts a round in."""
        self.faults.update(each.fault.kind for each in one.faults)
        self.requests += len(one.records)
        self.tokens += sum(len(record.tokens) for record in one.records)
        self.resent += sum(record.resent for record in one.records)
        self.errors.update(record.error for record in one.records if record.error)
        self.violations += violations
        for name, was in one.first.items():
            if (now := one.after.get(name)) is not None and now.life == was.life:
                self.memory_growth = max(self.memory_growth, now.resident - was.resident)
                self.files_growth = max(self.files_growth, now.files - was.files)
                self.tasks_growth = max(self.tasks_growth, now.tasks - was.tasks)

    def __str__(self) -> str:
        return (
            f"{self.faults.total()} faults, {self.requests} requests, {self.tokens} tokens, {self.resent} sent again, "
            f"errors {dict(self.errors)}, grew by {self.memory_growth / 1e6:.0f} MB, {self.files_growth} files and "
            f"{self.tasks_growth} tasks at most, {len(self.violations)} violations"
        )
