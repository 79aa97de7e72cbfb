"""What the lines of the go/no-go list have in common. No effects."""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from services.console.drill.values import Check, Verdict
from services.console.readiness.facts import Facts

GO, NO_GO, UNKNOWN = Verdict.GO, Verdict.NO_GO, Verdict.UNKNOWN
MOST_SHOWN = 5
"""Names in a line; of more, the number is told."""


def unknown(what: str, facts: Facts, field: str) -> Check:
    """A line whose facts are not there."""
    return Check(what, UNKNOWN, facts.faults.get(field, "was not asked for"), "ask again when the mesh answers")


def listed(parts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(parts) - MOST_SHOWN
    return ", ".join(parts[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def seconds(duration: Duration) -> str:
    """A time, for a person."""
    return f"{duration.ToMicroseconds() / 1e6:g} s"
