"""`headrace apply`."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from headrace.registry.v1 import registry_pb2
from libs.client.errors import HeadraceError
from services.console import changes_view, model_files
from services.console.follow import follow
from services.console.model_files import Files, FilesInvalid
from services.console.operations import Operations, told
from services.console.placements import Placements
from services.console.problem import Problem
from services.console.rollout import Rollout
from services.console.rollout_view import RolloutView

TICK_S = 0.5
"""Waiting is judged again after this long even without news."""


@dataclass(frozen=True, slots=True)
class Apply:
    """What to apply, and how."""

    files: Sequence[str]
    """Files, folders, "-"."""
    prune: bool = False
    """Remove the models that the files do not have."""
    force: bool = False
    """Remove them even if tenants or routes refer to them."""
    dry_run: bool = False
    wait_s: float | None = None
    """Wait this long for what changed to be in force; None: not at all."""


def apply(target: str, key: str, what: Apply, console: Console) -> bool:
    """Checks, shows and writes; returns whether anything differed. Raises Problem."""
    files = model_files.load(what.files)
    try:
        return asyncio.run(_apply(target, key, what, files, console))
    except HeadraceError as error:
        raise _refused(error, target, files) from error


async def _apply(target: str, key: str, what: Apply, files: Files, console: Console) -> bool:
    async with Operations(target, key) as operations:
        catalogue = await _checked(operations, files, what)
        planned = await operations.apply(files.models, prune=what.prune, force=what.force, dry_run=True)
        console.print(changes_view.changes(planned))
        if not changes_view.differs(planned):
            return False
        if what.dry_run:
            console.print(Text("dry run: nothing was written", style="dim"))
            return True
        seen = {change.model: change.revision for change in planned}
        written = await operations.apply(files.models, prune=what.prune, force=what.force, expected=seen)
        console.print(Text("written", style="green"))
        if what.wait_s is not None:
            after = catalogue | {model.name: model for model in files.models}
            await _wait(operations, Rollout(written, _asleep(after)), what.wait_s, console)
        return True


async def _checked(operations: Operations, files: Files, what: Apply) -> dict[str, registry_pb2.Model]:
    """The catalogue as it is, once the files have been held to it. Raises Problem with every fault."""
    advice, unreached = "", None
    catalogue: dict[str, registry_pb2.Model] = {}
    try:
        catalogue = {model.name: model for model in (await operations.models())[0]}
    except HeadraceError as error:
        if not files.faults:
            raise
        unreached, advice = error, f"and {operations.target} could not be asked for its catalogue: {error.message}"
    try:
        files.check(catalogue, prune=what.prune)
    except FilesInvalid as invalid:
        faults = [str(fault) for fault in invalid.faults]
        count = "1 thing is" if len(faults) == 1 else f"{len(faults)} things are"
        raise Problem(f"nothing was written: {count} wrong", faults, advice) from unreached
    return catalogue


def _asleep(catalogue: Mapping[str, registry_pb2.Model]) -> set[str]:
    """Models that need no copy until they are asked for."""
    return {name for name, model in catalogue.items() if model.HasField("scaling") and not model.scaling.min}


async def _wait(operations: Operations, rollout: Rollout, wait_s: float, console: Console) -> None:
    """Until every change is in force. Raises Problem when one fails, or the time is up."""
    placements = Placements()
    news = asyncio.Event()
    following = asyncio.create_task(follow(operations, (), placements, news.set), name="follow")
    until = time.monotonic() + wait_s
    try:
        with RolloutView(console) as view:
            while True:
                waiting = asyncio.create_task(news.wait(), name="news")
                await asyncio.wait({waiting, following}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if following.done():
                    following.result()  # raises what ended it
                news.clear()
                progress = rollout.judge(placements, time.monotonic())
                view.show(progress)
                if placements.known and all(each.state == "ready" for each in progress):
                    return
                open_ones = [f"{each.model}: {each.detail}" for each in progress if each.state != "ready"]
                if failed := [f"{each.model}: {each.detail}" for each in progress if each.state == "failed"]:
                    raise Problem("written, but not in force", failed, "`headrace placements` shows more")
                if time.monotonic() > until:
                    raise Problem(f"written, but not in force after {wait_s:g} s", open_ones, "it goes on by itself")
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _refused(error: HeadraceError, target: str, files: Files) -> Problem:
    if error.reason != "REQUEST_INVALID" or not error.violations:
        return told(error, target)
    faults: list[str] = [files.locate(each.subject, each.description) for each in error.violations]
    return Problem(f"nothing was written: the mesh at {target} refuses it", faults)
