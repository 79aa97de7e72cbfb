"""Shows how far changes of the catalogue are: live in a terminal, a line per change of state elsewhere."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from services.console.rollout import Progress

FRAMES_PER_S = 8


class RolloutView:
    """Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Sequence[Progress] = ()
        self._told: dict[str, str] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=FRAMES_PER_S)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Sequence[Progress]) -> None:
        """There is something new."""
        self._progress = progress
        if self._live is not None:
            return
        for each in progress:
            line = f"{each.model}  {each.state}  {each.detail}"
            if self._told.get(each.model) != line:
                self._told[each.model] = line
                self._console.print(Text(line), soft_wrap=True)
                self._console.file.flush()

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for each in self._progress:
            mark: RenderableType = self._spinner
            if each.state != "waiting":
                mark = Text("● ready", style="green") if each.state == "ready" else Text("✗ failed", style="red")
            table.add_row(mark, Text(each.model, style="bold"), Text(each.detail, style="dim"))
        return table
