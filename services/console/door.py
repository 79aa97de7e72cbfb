"""The options by which a command finds its mesh, and the way in."""

from pathlib import Path
from typing import Annotated

import typer

from services.console.problem import Problem

STATE_DIR = Path(".headrace")

Target = Annotated[str | None, typer.Option(help="host:port of another mesh.")]
Key = Annotated[str | None, typer.Option(envvar="HEADRACE_API_KEY", help="By default the development key.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="HEADRACE_STATE_DIR", help="Where the mesh keeps its state.")
]


def door(target: str | None, key: str | None, state_dir: Path) -> tuple[str, str]:
    """host:port and key of the mesh that is meant. Raises Problem."""
    from services.console.commands.running import running

    if target is None:
        snapshot = running(state_dir.absolute())
        target, key = snapshot.target, key or snapshot.key
    if key is None:
        raise Problem("an API key is needed", advice="`--key`, or HEADRACE_API_KEY in the environment")
    return target, key


def read(path: Path) -> str:
    """The text of a file. Raises Problem."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{path} cannot be read", [str(error)]) from error
