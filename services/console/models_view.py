"""The catalogue for a person's eyes: each model with its copies. Pure; the time is an argument."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from services.console import words

WIDE = 110
"""Columns from which there is room for memory and engines."""


def models(catalogue: Sequence[registry_pb2.Model], statuses: Sequence[pb.ModelStatus], width: int) -> RenderableType:
    """A line per model, adapters below their base; under the table what is not as it is wanted, and why."""
    found = {model.name: (model, status) for model, status in zip(catalogue, statuses, strict=True)}
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column("model", overflow="fold")
    table.add_column("version", no_wrap=True, style="dim")
    table.add_column("ready", no_wrap=True)
    table.add_column("where", overflow="fold")
    if wide:
        table.add_column("memory", justify="right", no_wrap=True)
        table.add_column("engines", overflow="fold", style="dim")
    table.add_column("works", no_wrap=True, justify="right")
    for name in _in_order(catalogue):
        model, status = found[name]
        row: list[RenderableType] = [_name(model), status.version, _ready(model, status), _where(status)]
        if wide:
            row += [words.size(model.memory_bytes), ", ".join(model.engines) or ("" if model.base else "any")]
        table.add_row(*row, "" if model.base else _works(status))
    notes = [note for name in _in_order(catalogue) for note in _notes(*found[name])]
    return Group(table, Text(), *notes) if notes else table


def _in_order(catalogue: Sequence[registry_pb2.Model]) -> list[str]:
    """Models of their own by name, each with its adapters behind it; adapters without a base at the end."""
    own = {model.name for model in catalogue if not model.base}
    return [
        model.name
        for model in sorted(
            catalogue, key=lambda m: (bool(m.base) and m.base not in own, m.base or m.name, bool(m.base), m.name)
        )
    ]


def _name(model: registry_pb2.Model) -> Text:
    return Text.assemble(("└ ", "bright_black"), model.name) if model.base else Text(model.name, style="bold")


def _ready(model: registry_pb2.Model, status: pb.ModelStatus) -> Text:
    enough = status.ready >= status.wanted
    color = "green" if enough and status.ready else "bright_black" if enough else "yellow"
    text = Text(f"{status.ready} of {status.wanted}", style=color)
    if model.HasField("scaling"):
        text.append(f" ({model.scaling.min}–{model.scaling.max})", style="dim")
    return text


def _where(status: pb.ModelStatus) -> Text:
    """Executors of a model, with the state of each copy that is not ready; of an adapter, who has it in memory."""
    if status.base:
        return Text(", ".join(status.resident_on) or "loaded when asked for", style="" if status.resident_on else "dim")
    text = Text()
    for copy in status.copies:
        if text:
            text.append(", ")
        text.append(copy.executor)
        if copy.state != registry_pb2.MODEL_STATE_READY or copy.pool != status.pool:
            text.append(f" {words.word(copy.state)}", style=words.STATES.get(copy.state, ("", ""))[1])
        if copy.pool != status.pool:
            text.append(f" @{copy.version}", style="dim")
    return text or Text("nowhere", style="dim")


def _works(status: pb.ModelStatus) -> str:
    if not status.running and not status.waiting:
        return "–"
    return f"{status.running} run, {status.waiting} wait" if status.waiting else f"{status.running} run"


def _notes(model: registry_pb2.Model, status: pb.ModelStatus) -> Iterator[Text]:
    if model.base:
        if not status.pool:
            yield Text.assemble(
                ("✗ ", "red"), (model.name, "bold"), f": there is no model {model.base!r} to be its base"
            )
        return
    if status.HasField("unplaced"):
        sign = ("✗ ", "red") if status.unplaced.hopeless else ("○ ", "yellow")
        yield Text.assemble(sign, (model.name, "bold"), f": {status.unplaced.reason}")
    for copy in status.copies:
        if copy.reason:
            mark, color = words.STATES.get(copy.state, ("?", ""))
            what = f": {words.word(copy.state)} on {copy.executor}: {copy.reason}"
            yield Text.assemble((f"{mark} ", color), (model.name, "bold"), what)
