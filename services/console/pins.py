"""`headrace pin`, `headrace pins` and `headrace unpin`: the command line; the work is in commands/pins.py."""

from pathlib import Path
from typing import Annotated

import typer

from services.console import terminal
from services.console.door import STATE_DIR, AsJson, Key, StateDir, Target, door, read

app = typer.Typer()

Revision = Annotated[
    int | None, typer.Option(help="Only if it is at this revision (`headrace pins` shows it); 0: if it is not there.")
]


@app.command()
def pin(
    name: Annotated[str, typer.Argument(help="What the pin is called; one of that name is replaced.")],
    model: Annotated[str, typer.Option(help="A model, an adapter, or an alias.")],
    system_file: Annotated[Path | None, typer.Option(help="A file with the system prompt of chats.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file with the beginning of plain prompts.")] = None,
    tenant: Annotated[str, typer.Option(help="The isolated tenant whose cache it is for.")] = "",
    copies: Annotated[int, typer.Option(help="Executors that are to have it; 0 means all.", min=0)] = 0,
    revision: Revision = None,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Keep a system prompt in the caches of executors."""
    from services.console.commands.pins import Pin
    from services.console.commands.pins import pin as run

    if (system_file is None) == (prompt_file is None):
        raise typer.BadParameter("either --system-file or --prompt-file")
    system = read(system_file) if system_file is not None else None
    prompt = read(prompt_file) if prompt_file is not None else None
    run(*door(target, key, state_dir), Pin(name, model, system, prompt, tenant, copies, revision), terminal.out())


@app.command()
def pins(as_json: AsJson = False, target: Target = None, key: Key = None, state_dir: StateDir = STATE_DIR) -> None:
    """Show what is kept in the caches of executors."""
    from services.console.commands.pins import pins as run

    run(*door(target, key, state_dir), as_json, terminal.out())


@app.command()
def unpin(
    name: Annotated[str, typer.Argument(help="What the pin is called.")],
    revision: Revision = None,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Keep a prefix no longer than any other."""
    from services.console.commands.pins import unpin as run

    run(*door(target, key, state_dir), name, revision, terminal.out())
