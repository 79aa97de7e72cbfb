"""Shows a mesh while it starts and runs: a live table in a terminal, lines elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from services.console import board
from services.console.board import UsageMeter
from services.console.mesh.snapshot import ComponentSnapshot, MeshSnapshot, ModelSnapshot

FRAMES_PER_S = 8
MEASURE_EVERY_S = 2.0


class View(Protocol):
    """What shows snapshots. Use as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, snapshot: MeshSnapshot) -> None:
        """There is something new."""
        ...

    def say(self, what: RenderableType) -> None:
        """Something that stays."""
        ...


def view(console: Console, footer: str) -> View:
    """The view that fits the console; `footer` is shown under a live table."""
    return LiveView(console, footer) if console.is_terminal else LineView(console)


class LiveView:
    """A table that changes in place."""

    def __init__(self, console: Console, footer: str) -> None:
        self._footer = Text(footer, style="dim")
        self._snapshot: MeshSnapshot | None = None
        self._meter = UsageMeter()
        self._usages: dict[str, board.Usage] = {}
        self._measured = float("-inf")
        self._spinner = Spinner("dots", style="cyan")
        self._console = console
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=FRAMES_PER_S)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._footer = Text()
        self._live.stop()

    def show(self, snapshot: MeshSnapshot) -> None:
        """Keeps it for the next frame."""
        self._snapshot = snapshot

    def say(self, what: RenderableType) -> None:
        """Above the table."""
        self._console.print(what, soft_wrap=True)

    def _render(self) -> RenderableType:
        snapshot = self._snapshot
        if snapshot is None:
            return self._spinner
        if time.monotonic() - self._measured > MEASURE_EVERY_S:
            self._measured = time.monotonic()
            self._usages = self._meter.measure(snapshot)
        table = board.render(snapshot, self._usages, self._spinner)
        return Group(table, Text(), self._footer) if self._footer else table


class LineView:
    """A line per change of a state."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, snapshot: MeshSnapshot) -> None:
        """Prints what changed."""
        parts: tuple[ComponentSnapshot | ModelSnapshot, ...] = (*snapshot.components, *snapshot.models)
        for part in parts:
            # A waiting component has nothing to say, and of a model's preparation its phases are enough.
            state = part.state if isinstance(part, ComponentSnapshot) else f"{part.state} {part.detail}"
            if self._seen.get(part.name, "waiting") != state and part.state != "waiting":
                self._console.print(Text(board.line(part)), soft_wrap=True)
            self._seen[part.name] = state
        if self._seen.get("") != snapshot.phase:
            self._seen[""] = snapshot.phase
            self._console.print(Text(f"mesh          {snapshot.phase}"), soft_wrap=True)

    def say(self, what: RenderableType) -> None:
        """As it is."""
        self._console.print(what, soft_wrap=True)
