"""`headrace readiness`."""

import asyncio
from collections import Counter
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from libs.client.errors import HeadraceError
from services.console.drill.values import Check, Verdict
from services.console.mesh.folder import StateFolder
from services.console.operations import told
from services.console.readiness.checks import judge
from services.console.readiness.gather import gather

STYLES = {Verdict.GO: "green", Verdict.NO_GO: "bold red", Verdict.UNKNOWN: "yellow"}


def readiness(
    target: str, key: str, here: bool, state_dir: Path, drills: Path, as_json: bool, console: Console
) -> bool:
    """Shows the go/no-go list; whether every line is go. Raises Problem.

    Args:
        here: Whether the mesh is that of the state folder, so that its processes can be asked themselves.
        drills: The folder where drills leave their results.
    """
    snapshot = StateFolder(state_dir).read() if here else None
    try:
        facts = asyncio.run(gather(target, key, snapshot, drills))
    except HeadraceError as error:
        raise told(error, target) from error
    checks = judge(facts)
    if as_json:
        console.print_json(msgspec.json.encode(checks).decode())
    else:
        show(checks, console)
    return all(check.verdict is Verdict.GO for check in checks)


def show(checks: list[Check], console: Console) -> None:
    """A line for each, and what to do where something is to be done."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    for column in ("", "what", "evidence"):
        made.add_column(column, overflow="fold", no_wrap=not column)
    for check in checks:
        evidence = Text(check.evidence)
        if check.advice and check.verdict is not Verdict.GO:
            evidence.append(f"\n→ {check.advice}", style="cyan")
        made.add_row(Text(check.verdict.value, STYLES[check.verdict]), check.what, evidence)
    console.print(made)
    counts = Counter(check.verdict for check in checks)
    console.print()
    console.print(", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict))
