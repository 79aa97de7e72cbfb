"""`headrace drill` and `headrace readiness`: the command line; the work is in services.console.commands."""

from pathlib import Path
from typing import Annotated

import typer

from services.console import terminal
from services.console.door import STATE_DIR, AsJson, Key, StateDir, Target, door

app = typer.Typer()


@app.command()
def drill(
    model: Annotated[str | None, typer.Option(help="A model or a route; by default one that is ready.")] = None,
    tier: Annotated[str, typer.Option(help="interactive or async: whose ladder.")] = "interactive",
    scale: Annotated[float, typer.Option(help="Let rungs begin at this many times their saturation meanwhile.")] = 1.0,
    protected_key: Annotated[str, typer.Option(help="The key of a protected tenant, to see that it is spared.")] = "",
    tokens: Annotated[int, typer.Option(help="Of each answer.", min=1)] = 256,
    words: Annotated[int, typer.Option(help="Of each prompt.", min=1)] = 100,
    first_per_s: Annotated[float, typer.Option(help="Requests a second to begin with.", min=0.1)] = 1.0,
    growth: Annotated[float, typer.Option(help="By this the load grows each second.", min=1.01, max=4.0)] = 1.25,
    hold: Annotated[float, typer.Option(help="Seconds for which each rung is held.", min=0.0)] = 3.0,
    seconds: Annotated[float, typer.Option(help="Of load at most.", min=1.0)] = 120.0,
    max_requests: Annotated[int, typer.Option(help="Sent at most.", min=1)] = 20_000,
    max_per_s: Annotated[float, typer.Option(help="Requests a second at most.", min=0.1)] = 400.0,
    max_error_share: Annotated[float, typer.Option(help="Stop when more of them fail.", min=0.0, max=1.0)] = 0.01,
    max_others_refused: Annotated[
        int, typer.Option(help="Stop when more requests of other tenants are refused.", min=0)
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder of the report; by default in the state folder.")] = None,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Drive a tier down its ladder, rung by rung, and see that each does what it says."""
    from services.console.commands.drill import Typed
    from services.console.commands.drill import drill as run
    from services.console.drill.values import Bounds

    if tier not in ("interactive", "async"):
        raise typer.BadParameter(f"{tier}: it is interactive or async", param_hint="--tier")
    if not 0 < scale <= 1:
        raise typer.BadParameter(f"{scale:g}: more than 0, and at most 1", param_hint="--scale")
    bounds = Bounds(
        requests=max_requests,
        seconds=seconds,
        per_s=max_per_s,
        error_share=max_error_share,
        others_refused=max_others_refused,
    )
    typed = Typed(
        model=model, tier=tier, scale=scale, bounds=bounds, first_per_s=first_per_s, growth=growth, hold_s=hold,
        words=words, tokens=tokens, protected_key=protected_key, out=out or state_dir / "drill",
    )  # fmt: skip
    if not run(*door(target, key, state_dir), typed, terminal.out()):
        raise typer.Exit(1)


@app.command()
def readiness(
    drills: Annotated[Path | None, typer.Option(help="The folder of drills; by default in the state folder.")] = None,
    as_json: AsJson = False,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show the go/no-go list of a mesh, with the evidence for each line. Exits with 0 when all are go."""
    from services.console.commands.readiness import readiness as run

    folder = state_dir.absolute()
    found = door(target, key, state_dir)
    if not run(*found, target is None, folder, drills or folder / "drill", as_json, terminal.out()):
        raise typer.Exit(1)
