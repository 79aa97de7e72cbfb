"""`headrace policy`, `keys`, `switch`, `tenants` and `explain`: the command line; the work is in commands/."""

from pathlib import Path
from typing import Annotated

import typer

from services.console import terminal
from services.console.door import STATE_DIR, AsJson, Key, StateDir, Target, door, read
from services.console.problem import Problem

policy_app = typer.Typer(help="The rules and models of a mesh.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys.", no_args_is_help=True)
switch_app = typer.Typer(help="Kill switches.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(policy_app, name="policy")
app.add_typer(keys_app, name="keys")
app.add_typer(switch_app, name="switch")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder for each kind of rule, with YAML in it.")]
SwitchKind = Annotated[str, typer.Argument(metavar="KIND", help="model, tenant, tool or feature.")]
SwitchName = Annotated[str, typer.Argument(metavar="NAME", help="Which one; of features: hedging, tools, session…")]


@policy_app.command("apply")
def policy_apply(
    folder: Folder,
    etcd: Annotated[str | None, typer.Option(help="host:port of each member, comma-separated.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what the folder does not hold.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for etcd.")] = 0.0,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Put a policy into force: it is checked as a whole, then written to etcd."""
    from services.console.commands.policy import apply
    from services.console.commands.running import running

    members = etcd or running(state_dir.absolute()).etcd
    apply(folder, [member.strip() for member in members.split(",")], prune, wait, terminal.out())


@policy_app.command("check")
def policy_check(folder: Folder) -> None:
    """Hold a policy to its rules, and write nothing."""
    from services.console.commands.policy import check

    check(folder, terminal.out())


@policy_app.command("list")
def policy_list(
    kind: Annotated[str, typer.Argument(help="tenants, tiers, routes, breakers…; all by default.")] = "",
    as_json: AsJson = False,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show the rules that hold, without the hashes of keys."""
    from services.console.commands.rules import rules

    rules(*door(target, key, state_dir), kind, as_json, terminal.out())


@keys_app.command("new")
def keys_new(tenant: Annotated[str, typer.Argument(help="Who it is for.")]) -> None:
    """Make an API key: the key for the tenant, its hash for the policy."""
    from services.console.commands.policy import new_key

    new_key(tenant, terminal.out())


@switch_app.command("on")
def switch_on(
    kind: SwitchKind,
    name: SwitchName,
    reason: Annotated[str, typer.Option(help="Told to whoever is refused.")],
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Refuse new requests for something, everywhere, within a second."""
    from services.console.commands.switches import on

    on(*door(target, key, state_dir), kind, name, reason, terminal.out())


@switch_app.command("off")
def switch_off(
    kind: SwitchKind, name: SwitchName, target: Target = None, key: Key = None, state_dir: StateDir = STATE_DIR
) -> None:
    """Let requests for it in again."""
    from services.console.commands.switches import off

    off(*door(target, key, state_dir), kind, name, terminal.out())


@switch_app.command("list")
def switch_list(
    as_json: AsJson = False, target: Target = None, key: Key = None, state_dir: StateDir = STATE_DIR
) -> None:
    """Show what is switched off, why, and by whom."""
    from services.console.commands.switches import switches

    switches(*door(target, key, state_dir), as_json, terminal.out())


@app.command()
def tenants(as_json: AsJson = False, target: Target = None, key: Key = None, state_dir: StateDir = STATE_DIR) -> None:
    """Show who sends how much now, against what each may: the noisiest first."""
    from services.console.commands.tenants import tenants as run

    run(*door(target, key, state_dir), as_json, terminal.out())


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="What would be said to the model.")],
    model: Annotated[str, typer.Option(help="A model or alias.")] = "default",
    tenant: Annotated[str, typer.Option(help="Who would send it; by default the owner of the key.")] = "",
    tier: Annotated[str | None, typer.Option(help="interactive or async.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="A file; the answer would be JSON that fits it.")] = None,
    contract: Annotated[str, typer.Option(help="The contract that it would cite.")] = "",
    requires: Annotated[list[str] | None, typer.Option(help="A capability that it would need; repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeatable.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The prompt as it is, without a chat around it.")] = False,
    as_json: AsJson = False,
    target: Target = None,
    key: Key = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Say what every stage would decide about a request now, and why, without running it."""
    from services.console.commands.explain import Asked
    from services.console.commands.explain import explain as run

    if tier not in (None, "interactive", "async"):
        raise Problem(f"--tier {tier}: it is interactive or async")
    tags = dict(each.partition("=")[::2] for each in tag or [])
    schema = read(json_schema) if json_schema else ""
    asked = Asked(prompt, model, tenant, tier, max_tokens, schema, contract, tuple(requires or ()), tags, raw)
    run(*door(target, key, state_dir), asked, as_json, terminal.out())
