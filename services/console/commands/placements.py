"""`headrace placements`."""

import asyncio
import time
from collections.abc import Callable

from google.protobuf import json_format
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from libs.client.errors import HeadraceError
from services.console import placements_view
from services.console.follow import follow
from services.console.operations import Operations, told
from services.console.placements import Placements

FRAMES_PER_S = 4


def placements(target: str, key: str, models: list[str], watch: bool, as_json: bool, console: Console) -> None:
    """Shows what lies where; with `watch`, on and on. Raises Problem."""
    try:
        if as_json:
            asyncio.run(_json(target, key, models, watch, console))
        elif watch:
            asyncio.run(_watch(target, key, models, console))
        else:
            found = asyncio.run(_now(target, key, models))
            console.print(placements_view.placements(found, time.time(), console.width))
    except HeadraceError as error:
        raise told(error, target) from error


async def _now(target: str, key: str, models: list[str]) -> Placements:
    found = Placements()
    async with Operations(target, key) as operations:
        async for message in operations.watch(models):
            found.take(message)
            break
    return found


async def _json(target: str, key: str, models: list[str], watch: bool, console: Console) -> None:
    """A message of WatchPlacements per line."""
    async with Operations(target, key) as operations:
        async for message in operations.watch(models):
            line = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
            console.print(Text(line), soft_wrap=True)
            console.file.flush()
            if not watch:
                return


async def _watch(target: str, key: str, models: list[str], console: Console) -> None:
    found = Placements()
    async with Operations(target, key) as operations:
        if not console.is_terminal:
            await follow(operations, models, found, _printing(found, console))
        footer = Text("\nCtrl-C ends this; the mesh goes on.", style="dim")

        def frame() -> RenderableType:
            if not found.known:
                return Text("…")
            return Group(placements_view.placements(found, time.time(), console.width), footer)

        with Live(get_renderable=frame, console=console, refresh_per_second=FRAMES_PER_S) as live:
            await follow(operations, models, found, live.refresh)


def _printing(found: Placements, console: Console) -> Callable[[], None]:
    """Prints a line per change, where there is no terminal."""
    before = Placements()

    def changed() -> None:
        nonlocal before
        for line in placements_view.lines(before, found):
            console.print(Text(f"{time.strftime('%H:%M:%S')}  {line}"), soft_wrap=True)
        console.file.flush()
        before = found.kept()

    return changed
