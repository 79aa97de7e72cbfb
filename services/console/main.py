"""The `headrace` command: what a person runs.

Each subcommand's work is in `services.console.commands`, imported when it is asked for: a command that needs
no gRPC does not wait for it.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from libs.settings import SettingsInvalid, parse
from services.console import terminal
from services.console.audit import app as audit_app
from services.console.config import Settings
from services.console.door import STATE_DIR, AsJson, Key, StateDir, Target
from services.console.door import door as _door
from services.console.door import read as _read
from services.console.intents import app as intents_app
from services.console.mesh.parts import POLICY_DIR
from services.console.mesh.plan import BASE_PORT, Options
from services.console.pins import app as pins_app
from services.console.policy_app import app as policy_app
from services.console.problem import Problem
from services.console.readiness_app import app as readiness_app
from services.console.simulate import app as simulate_app

app = typer.Typer(
    help="Headrace: an LLM inference mesh.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(policy_app)
app.add_typer(simulate_app, name="simulate")
app.add_typer(pins_app)
app.add_typer(audit_app)
app.add_typer(intents_app)
app.add_typer(readiness_app)


@app.command()
def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is healthy, leave it running.")
    ] = False,
    executors: Annotated[int, typer.Option(help="Executor processes.")] = 1,
    engine: Annotated[
        str, typer.Option(help="Of the executors, in turn: openvino, simulated, remote, triton, trtllm, vllm.")
    ] = "openvino",
    envoy: Annotated[bool, typer.Option(help="With Envoy in front.")] = True,
    port: Annotated[int, typer.Option(help="The clients' port; all others follow from it.")] = BASE_PORT,
    etcd_port: Annotated[int | None, typer.Option(help="etcd's port, where it is not to follow.")] = None,
    policy: Annotated[Path, typer.Option(help="The folder of tenants, tiers, routes and models.")] = POLICY_DIR,
    admissions: Annotated[int, typer.Option(help="Admission processes.")] = 1,
    routers: Annotated[int, typer.Option(help="Router processes.")] = 1,
    batchers: Annotated[int, typer.Option(help="Batcher processes.")] = 1,
    kvcaches: Annotated[int, typer.Option(help="KV-cache managers; all but the first stand by.")] = 1,
    monoliths: Annotated[
        int, typer.Option(help="Processes with all these four in one, instead of the four apart.")
    ] = 0,
    placements: Annotated[int, typer.Option(help="Placement controllers; one leads.")] = 1,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Start a mesh on this machine, and stay until Ctrl-C."""
    from services.console.commands.up import up as run

    try:
        settings = parse(Settings, os.environ)
    except SettingsInvalid as error:
        raise Problem("the environment is not valid", str(error).splitlines()) from error
    options = Options(
        state_dir=state_dir.absolute(),
        policy_dir=policy.absolute(),
        cache_dir=settings.cache_dir.expanduser().absolute(),
        engine=engine,
        admissions=admissions,
        routers=routers,
        batchers=batchers,
        executors=executors,
        kvcaches=kvcaches,
        monoliths=monoliths,
        placements=placements,
        envoy=envoy,
        port=port,
        etcd_port=etcd_port,
        otlp_endpoint=settings.otlp_endpoint,
        trace_ratio=settings.trace_ratio,
        drain_s=settings.drain_s,
        notice_s=settings.notice_s,
    )
    run(options, detach, "" if state_dir == STATE_DIR else f" --state-dir {state_dir}", terminal.out())


@app.command()
def down(
    state_dir: StateDir = STATE_DIR,
    patience: Annotated[float, typer.Option(help="Seconds until what has not ended is killed.")] = 60.0,
) -> None:
    """Stop the mesh."""
    from services.console.commands.down import down as run

    run(state_dir.absolute(), patience, terminal.out())


@app.command()
def restart(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[WHAT]...", help="Services or components; by default all but Envoy.")
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds until one that is not back is given up.")] = 120.0,
    pause: Annotated[float, typer.Option(help="Seconds between one that is back and the next.")] = 1.0,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Restart one component after the other: each drains, and is back before the next."""
    from services.console.commands.restart import Restart
    from services.console.commands.restart import restart as run

    run(state_dir.absolute(), Restart(what or [], patience, pause), terminal.out())


@app.command()
def status(
    state_dir: StateDir = STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Show every component, asked how it is. Exits with 0 when all are well."""
    from services.console.commands.running import running
    from services.console.commands.status import status as run

    if not run(running(state_dir.absolute()), as_json, terminal.out()):
        raise typer.Exit(1)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model; - reads stdin.")],
    model: Annotated[str | None, typer.Option(help="A model or alias; by default the one that is ready.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    system: Annotated[str, typer.Option(help="Instructions to the model.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="The prompt as it is, without a chat around it.")] = False,
    tier: Annotated[str | None, typer.Option(help="interactive or async.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="A file; the answer is JSON that fits it.")] = None,
    session: Annotated[bool, typer.Option("--session", help="Over the Session stream.")] = False,
    request_id: Annotated[str | None, typer.Option(help="Names the request in traces and logs.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole answer.")] = None,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Ask a model, and read the answer as it is made."""
    from libs.client import GenerateOptions
    from services.console.commands.generate import Question
    from services.console.commands.generate import generate as run

    target, key = _door(target, key, state_dir)
    if tier not in (None, "interactive", "async"):
        raise Problem(f"--tier {tier}: it is interactive or async")
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        json_schema=_read(json_schema) if json_schema else None,
        tier="interactive" if tier == "interactive" else "async" if tier == "async" else None,
        timeout=timeout,
        request_id=request_id,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    run(target, key, Question(text, system, raw, model, options, session), terminal.err())


@app.command()
def apply(
    file: Annotated[list[str], typer.Option("--file", "-f", help="YAML; a folder of it; - for stdin.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 2 where anything differs, 0 where nothing does.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove models that the files do not have.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even those that tenants or routes refer to.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until what changed can answer, or cannot.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that --wait waits.")] = 600.0,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Write models to the catalogue: checked as a whole, shown, then written if nobody else was quicker."""
    from services.console.commands.apply import Apply
    from services.console.commands.apply import apply as run

    door = _door(target, key, state_dir)
    what = Apply(file, prune, force, dry_run, timeout if wait else None)
    if run(*door, what, terminal.out()) and exit_code:
        raise typer.Exit(2)


@app.command()
def models(as_json: AsJson = False, target: Target = None, key: Key = None, state_dir: StateDir = STATE_DIR) -> None:
    """Show the catalogue: each model, its copies, and where they lie."""
    from services.console.commands.models import models as run

    run(*_door(target, key, state_dir), as_json, terminal.out())


@app.command()
def placements(
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Only these; all by default.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with what changes.")] = False,
    as_json: AsJson = False,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show what lies on each executor, in which state, and why."""
    from services.console.commands.placements import placements as run

    run(*_door(target, key, state_dir), model or [], watch, as_json, terminal.out())


@app.command()
def trace(request_id: str, state_dir: StateDir = STATE_DIR) -> None:
    """Show where the time of a request went, hop by hop."""
    from services.console.commands.trace import trace as run

    run(state_dir.absolute(), request_id, terminal.out())


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="A component (router-1, etcd, supervisor) or a service (router).")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("-n", help="How many of the last lines.", min=0)] = 50,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show what a component says."""
    from services.console.commands.logs import logs as run

    run(state_dir.absolute(), service, lines, follow, terminal.out())


def main() -> None:
    """Entry point."""
    # gRPC's own remarks would tear a live table; its errors reach us as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except Problem as problem:
        problem.show(terminal.err())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
