"""Placements for a person's eyes: each executor with its memory and copies. Pure; the time is an argument."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from services.console import words
from services.console.placements import Placements

WIDE = 110
"""Columns from which there is room for why a copy lies where it lies, not only for what is wrong with it."""


def placements(found: Placements, now: float, width: int) -> RenderableType:
    """A block per executor, then the models with fewer copies than wanted. `now` is in Unix seconds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold", min_width=14)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right", style="dim")
    table.add_column(overflow="fold", style="dim")
    for index, (name, copies) in enumerate(found.by_executor().items()):
        if index:
            table.add_row()
        table.add_row(*_executor(name, found.executors.get(name)))
        for copy in copies:
            why = copy.reason or ("" if copy.placed else "placement has withdrawn it")
            why = why or (copy.placement_reason if width >= WIDE else "")
            pool = Text.assemble("  ", copy.model, (f"@{copy.version}" if copy.version else "", "dim"))
            table.add_row(pool, words.shown(copy.state), words.size(copy.memory_bytes), _age(copy.since, now), why)
            if copy.adapters:
                table.add_row("", "", "", "", _adapters(copy))
        if not copies:
            table.add_row(Text("  nothing", style="dim"))
    parts: list[RenderableType] = [table]
    if found.unplaced:
        parts += [Text(), *(line for name in sorted(found.unplaced) for line in _unplaced(found.unplaced[name], now))]
    if warning := trouble(found, now):
        parts += [Text(), Text(warning, style="yellow")]
    return Group(*parts)


def trouble(found: Placements, now: float) -> str:
    """Why what is shown may be old; "" when it is not."""
    if found.lost:
        return f"the mesh does not answer, trying again: {found.lost}"
    if found.stale_since:
        return f"the mesh has been out of touch with etcd for {words.age(now - found.stale_since)}: this may be old"
    return ""


def lines(before: Placements, after: Placements) -> Iterator[str]:
    """What changed, a line each, where there is no terminal."""
    for key, copy in sorted(after.copies.items()):
        old = before.copies.get(key)
        if old is None or (old.state, old.reason) != (copy.state, copy.reason):
            change = words.word(copy.state) if old is None else f"{words.word(old.state)} → {words.word(copy.state)}"
            yield f"{copy.executor}  {copy.pool}  {change}" + (f"  {copy.reason}" if copy.reason else "")
        told = {adapter.adapter for adapter in old.adapters} if old is not None else set()
        held = {adapter.adapter for adapter in copy.adapters}
        yield from (f"{copy.executor}  {copy.pool}  adapter {name} loaded" for name in sorted(held - told))
        yield from (f"{copy.executor}  {copy.pool}  adapter {name} unloaded" for name in sorted(told - held))
    for executor, pool in sorted(before.copies.keys() - after.copies.keys()):
        yield f"{executor}  {pool}  gone"
    for name, unplaced in sorted(after.unplaced.items()):
        if before.unplaced.get(name) != unplaced:
            yield f"unplaced  {name}  {unplaced.reason}"
    for name in sorted(before.unplaced.keys() - after.unplaced.keys()):
        yield f"placed  {name}  has as many copies as wanted"
    if after.lost and after.lost != before.lost:
        yield f"the mesh does not answer, trying again: {after.lost}"
    if after.stale_since and not before.stale_since:
        yield "the mesh is out of touch with etcd: what it says may be old"


def _executor(name: str, memory: pb.ExecutorMemory | None) -> tuple[RenderableType, ...]:
    if memory is None:
        return Text(name, style="bold"), Text("away", style="yellow"), "", "", "it may be restarting"
    state = Text("draining", style="yellow") if memory.draining else Text(memory.engine, style="cyan")
    used = f"{words.size(memory.used_bytes)} of {words.size(memory.memory_bytes)}"
    labels = " ".join(f"{key}={value}" for key, value in sorted(memory.labels.items()))
    return Text(name, style="bold"), state, Text(used, style="bold"), "", labels


def _adapters(copy: pb.Copy) -> Text:
    text = Text("adapters: ")
    for index, held in enumerate(copy.adapters):
        text.append(f"{', ' if index else ''}{held.adapter.partition('@')[0]}")
        if held.works:
            text.append(f" ({held.works} running)")
    return text


def _unplaced(unplaced: registry_pb2.Unplaced, now: float) -> Iterator[Text]:
    mark, color = ("✗", "red") if unplaced.hopeless else ("○", "yellow")
    since = f" (for {_age(unplaced.since, now)})" if unplaced.since else ""
    yield Text.assemble((f"{mark} ", color), (unplaced.model, "bold"), f": {unplaced.reason}", (since, "dim"))


def _age(since: float, now: float) -> str:
    return words.age(now - since) if since else ""
