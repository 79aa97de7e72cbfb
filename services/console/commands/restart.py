"""`headrace restart`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from services.console.commands.running import running
from services.console.envoy import Endpoint, ports_in_use
from services.console.mesh.folder import StateFolder
from services.console.mesh.found import found
from services.console.mesh.plan import DOORS, ENVOY_ADMIN_OFFSET, HOST, in_restart_order
from services.console.mesh.process import tail
from services.console.mesh.snapshot import ComponentSnapshot, MeshSnapshot
from services.console.problem import Problem

POLL_S = 0.05
EXCERPT_LINES = 15


@dataclass(frozen=True, slots=True)
class Restart:
    """How one goes about it."""

    names: Sequence[str]
    """Components and services; none: all but Envoy."""
    patience_s: float
    """For one component to drain, to start, and to have what it had."""
    pause_s: float
    """After each: its neighbours find it."""


def restart(state_dir: Path, how: Restart, console: Console) -> None:
    """Restarts one component after the other: each drains, ends, is started again by its supervisor, and is well before
    the next one's turn. Raises Problem when the mesh is not well, or does not get so; then the rest is left alone."""
    before = running(state_dir)
    try:
        names = in_restart_order(how.names, {part.name: part.service for part in before.components})
    except KeyError as unknown:
        there = ", ".join(part.name for part in before.components)
        raise Problem(f"there is no component or service {unknown.args[0]!r}", [f"there are {there}"]) from None
    for name in _alone(names, before):
        console.print(Text(f"{name} is the only one: until it is back, callers get UNAVAILABLE", style="yellow"))
    for number, name in enumerate(names):
        if number:
            time.sleep(how.pause_s)
        before = _well(state_dir, name, how.patience_s)
        part, began = before.component(name), time.monotonic()
        with console.status(f"restarting {name}"):
            _end(part)
            _until(lambda: _is_back(running(state_dir), before, part), state_dir, name, how.patience_s)  # noqa: B023
        console.print(Text(f"{name} is back after {time.monotonic() - began:.1f} s"))


def _alone(names: Sequence[str], mesh: MeshSnapshot) -> list[str]:
    """Those without which the door is shut. Requests wait for all others."""
    doors = [part.name for part in mesh.components if part.service in DOORS]
    return [name for name in names if name == "envoy" or doors == [name]]


def _well(state_dir: Path, name: str, patience_s: float) -> MeshSnapshot:
    """The mesh as it is when it is well."""
    _until(lambda: running(state_dir).phase == "healthy", state_dir, name, patience_s)
    return running(state_dir)


def _end(part: ComponentSnapshot) -> None:
    process = found(part)
    if process is None:
        raise Problem(f"{part.name} does not run", advice="`headrace status` shows the mesh")
    process.terminate()


def _is_back(now: MeshSnapshot, before: MeshSnapshot, part: ComponentSnapshot) -> bool:
    """Whether it runs anew, everything is well, models are on as many executors, and Envoy sends it requests."""
    again = now.component(part.name)
    if again.started in (None, part.started) or again.state != "healthy" or now.phase != "healthy":
        return False
    copies = {model.name: len(model.executors) for model in now.models}
    if any(copies.get(model.name, 0) < len(model.executors) for model in before.models):
        return False
    envoys = [each for each in now.components if each.service == "envoy"] if part.service in DOORS else []
    try:
        return all(part.port in ports_in_use(Endpoint(HOST, each.port + ENVOY_ADMIN_OFFSET)) for each in envoys)
    except OSError:
        return False


def _until(reached: Callable[[], bool], state_dir: Path, name: str, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not reached():
        if time.monotonic() > end:
            log = StateFolder(state_dir).log(name)
            raise Problem(
                f"the mesh is not well within {patience_s:g} s at the turn of {name}; nothing else was restarted",
                excerpt=tail(log, EXCERPT_LINES),
                advice="`headrace status` shows what is not well",
            )
        time.sleep(POLL_S)
