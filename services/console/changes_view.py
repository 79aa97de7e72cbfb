"""Changes of the catalogue for a person's eyes: what is new, what differs, what rolls out. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb

_MARKS = {
    pb.CHANGE_KIND_ADDED: ("+", "new", "green"),
    pb.CHANGE_KIND_CHANGED: ("~", "changed", "yellow"),
    pb.CHANGE_KIND_UNCHANGED: ("=", "unchanged", "bright_black"),
    pb.CHANGE_KIND_REMOVED: ("-", "removed", "red"),
}


def changes(found: Sequence[pb.ModelChange]) -> RenderableType:
    """A paragraph per change, and the sum."""
    return Group(*(part for change in found for part in _change(change)), summary(found))


def summary(found: Sequence[pb.ModelChange]) -> Text:
    """How many of each kind."""
    counts = Counter(change.kind for change in found)
    return Text(", ".join(f"{counts[kind]} {word}" for kind, (_, word, _) in _MARKS.items()))


def differs(found: Sequence[pb.ModelChange]) -> bool:
    """Whether anything would be written."""
    return any(change.kind != pb.CHANGE_KIND_UNCHANGED for change in found)


def _change(change: pb.ModelChange) -> Iterator[RenderableType]:
    mark, word, color = _MARKS[change.kind]
    yield Text.assemble((f"{mark} {change.model}", f"bold {color}"), (f"  {_consequence(change, word)}", "dim"))
    if change.kind != pb.CHANGE_KIND_CHANGED:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for field in change.fields:
        before, after = field.before or "unset", field.after or "unset"
        table.add_row(f"    {field.path}", Text.assemble((before, "red"), " → ", (after, "green")))
    yield table


def _consequence(change: pb.ModelChange, word: str) -> str:
    """What the change does to what is loaded."""
    adapter = f"adapter of {change.base}, " if change.base else ""
    match change.kind:
        case pb.CHANGE_KIND_ADDED:
            return f"{word}: {adapter}{change.model}@{change.version}"
        case pb.CHANGE_KIND_CHANGED if change.rolls_out:
            verb = "loads anew" if change.base else "rolls out"
            return f"{adapter}{verb} {change.model}@{change.version_before} → @{change.version}"
        case pb.CHANGE_KIND_CHANGED:
            return f"{adapter}{change.model}@{change.version} stays loaded as it is"
        case pb.CHANGE_KIND_REMOVED:
            return f"{word}: {adapter}its copies drain and go" if not adapter else f"{word}: {adapter.rstrip(', ')}"
    return word
