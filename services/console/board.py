"""A mesh for a person's eyes: a table with a line per component and model, or plain lines where none fits.

Pure but for `usage_of`, which asks the system.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from services.console.mesh.snapshot import ComponentSnapshot, MeshSnapshot, ModelSnapshot

COLOURS = {
    "healthy": "green",
    "ready": "green",
    "unhealthy": "yellow",
    "draining": "yellow",
    "restarting": "yellow",
    "degraded": "yellow",
    "failed": "red",
    "stopped": "bright_black",
    "waiting": "bright_black",
    "asleep": "bright_black",
}
"""Of states; all others are on their way, in cyan."""
MARKS = {
    "healthy": "●", "ready": "●", "unhealthy": "◐", "degraded": "◐", "failed": "✗", "stopped": "○", "waiting": "○",
    "asleep": "○",
}  # fmt: skip
MOVING = frozenset({"starting", "draining", "restarting", "stopping", "preparing", "loading"})
BAR_WIDTH = 24


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children take."""

    cpu_percent: float
    """Of one core, since it was asked last."""
    memory_bytes: int
    """Resident."""


class UsageMeter:
    """Asks the system what processes take; keeps what it needs to tell the CPU share since the last time."""

    def __init__(self) -> None:
        self._seen: dict[int, psutil.Process] = {}

    def measure(self, snapshot: MeshSnapshot) -> dict[str, Usage]:
        """Per component that runs, children included (an executor's engine is one)."""
        usages: dict[str, Usage] = {}
        seen: dict[int, psutil.Process] = {}
        for component in snapshot.components:
            if component.pid is None:
                continue
            try:
                parent = self._process(component.pid)
                family = [parent, *(self._process(child.pid) for child in parent.children(recursive=True))]
                cpu = sum(process.cpu_percent() for process in family)
                memory = sum(process.memory_info().rss for process in family)
            except psutil.Error:  # it has just ended
                continue
            seen |= {process.pid: process for process in family}
            usages[component.name] = Usage(cpu, memory)
        self._seen = seen
        return usages

    def _process(self, pid: int) -> psutil.Process:
        known = self._seen.get(pid)
        return known if known is not None and known.is_running() else psutil.Process(pid)


def render(snapshot: MeshSnapshot, usages: Mapping[str, Usage], spinner: Spinner | None = None) -> RenderableType:
    """The table; `spinner` turns in front of what is on its way."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column("component", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("port", justify="right")
    table.add_column("pid", justify="right")
    table.add_column("cpu", justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("↻", justify="right")  # restarts
    table.add_column("", style="dim", overflow="fold")
    for component in snapshot.components:
        table.add_row(*_component_row(component, usages.get(component.name) if component.pid else None, spinner))
    parts: list[RenderableType] = [_headline(snapshot, spinner), Text(), table]
    if snapshot.models:
        models = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
        models.add_column("model", no_wrap=True, min_width=11)
        models.add_column("state", no_wrap=True)
        models.add_column("", style="dim", no_wrap=True, overflow="ellipsis")
        for model in snapshot.models:
            models.add_row(Text(model.name, style="bold"), _state(model.state, spinner), _model_detail(model))
        parts += [Text(), models]
    return Group(*parts)


def line(part: ComponentSnapshot | ModelSnapshot) -> str:
    """A change of one component or model, where there is no terminal."""
    facts = [f"{part.name:<13} {part.state:<10}"]
    if isinstance(part, ComponentSnapshot) and part.pid:
        facts.append(f"port {part.port}, pid {part.pid}")
    if part.detail and part.state != "starting":  # that nobody answers yet goes without saying
        facts.append(part.detail)
    return "  ".join(facts)


def bytes_for_people(count: int) -> str:
    """In MB or GB, as `ls` would say it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _headline(snapshot: MeshSnapshot, spinner: Spinner | None) -> RenderableType:
    text = Text.assemble(
        ("headrace ", "bold"),
        (snapshot.phase, f"bold {COLOURS.get(snapshot.phase, 'cyan')}"),
        (f"   {snapshot.target}   {snapshot.engine} engine   {snapshot.state_dir}", "dim"),
    )
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _component_row(
    component: ComponentSnapshot, usage: Usage | None, spinner: Spinner | None
) -> tuple[RenderableType, ...]:
    return (
        Text(component.name, style="bold"),
        _state(component.state, spinner),
        str(component.port),
        Text(str(component.pid or "–"), style="dim"),
        Text(f"{usage.cpu_percent:.0f} %" if usage else "–", style="dim"),
        Text(bytes_for_people(usage.memory_bytes) if usage else "–", style="dim"),
        Text(str(component.restarts or "–"), style="yellow" if component.restarts else "dim"),
        component.detail,
    )


def _state(state: str, spinner: Spinner | None) -> RenderableType:
    colour = COLOURS.get(state, "cyan")
    if state in MOVING and spinner is not None:
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(spinner, Text(state, style=colour))
        return row
    return Text(f"{MARKS.get(state, '◌')} {state}", style=colour)


def _model_detail(model: ModelSnapshot) -> RenderableType:
    if model.fraction is None:
        return Text(model.detail)
    row = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=1.0, completed=model.fraction, width=BAR_WIDTH)
    row.add_row(bar, f"{model.fraction:4.0%}", model.detail)
    return row
