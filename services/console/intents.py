"""`headrace intents`: the command line; the work is in commands/intents.py."""

from pathlib import Path
from typing import Annotated

import typer

from services.console import terminal
from services.console.door import STATE_DIR, AsJson, StateDir

intents_app = typer.Typer(help="What requests are about, for rules of routes.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(intents_app, name="intents")

File = typer.Option(envvar="HEADRACE_INTENTS", help="The trained file; by default intents.npz in the state's folder.")


@intents_app.command("train")
def intents_train(
    folder: Annotated[Path, typer.Argument(help="With INTENT.txt for each intent, an example a line.")],
    out: Annotated[Path | None, File] = None,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Learn intents from examples. Routers that use the file follow within two seconds."""
    from services.console.commands.intents import train as run

    run(folder, out or state_dir / "intents.npz", as_json, terminal.out())


@intents_app.command("try")
def intents_try(
    text: Annotated[str, typer.Argument(help="What a user may say.")],
    file: Annotated[Path | None, File] = None,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show the intent of a text, and what else it could be."""
    from services.console.commands.intents import attempt as run

    run(text, file or state_dir / "intents.npz", as_json, terminal.out())
