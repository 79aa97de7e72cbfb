"""`headrace audit`: the command line; the work is in commands/audit.py."""

from typing import Annotated

import typer

from services.console import terminal
from services.console.door import STATE_DIR, AsJson, Key, StateDir, Target, door

audit_app = typer.Typer(help="Who asked for what, and what operators changed.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(audit_app, name="audit")


@audit_app.command("list")
def audit_list(
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    request: Annotated[str, typer.Option(help="Only of the request of this id.")] = "",
    hours: Annotated[float, typer.Option(help="Only of the last so many hours.", min=0.0)] = 24.0,
    operators: Annotated[bool, typer.Option("--operators", help="Only what operators changed.")] = False,
    most: Annotated[int, typer.Option("--most", "-n", help="At most so many, the newest first.", min=1)] = 50,
    as_json: AsJson = False,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show entries, the newest first."""
    from services.console.commands.audit import Wanted
    from services.console.commands.audit import entries as run

    wanted = Wanted(tenant, request, hours, operators, most)
    run(*door(target, key, state_dir), wanted, as_json, terminal.out())


@audit_app.command("delete")
def audit_delete(
    tenant: Annotated[str, typer.Argument(help="Whose entries.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Delete all entries of a tenant, in every admission process. They cannot be brought back."""
    from services.console.commands.audit import delete as run

    if not yes:
        typer.confirm(f"delete the audit log of {tenant}?", abort=True)
    run(*door(target, key, state_dir), tenant, terminal.out())
