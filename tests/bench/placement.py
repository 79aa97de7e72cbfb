"""What a plan costs: hundreds of executors, hundreds of models, in the worst case and from day to day.

    python -m tests.bench.placement [--executors 500] [--models 200] [--rounds 5] [--out FILE.json]

The meshes are drawn from a seed. Each case is planned `--rounds` times; the table shows the median and the worst
time, the copies that the plan has, and how many of today's copies it moves or withdraws.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from libs.catalogue import ModelSpec, Scaling
from services.placement.plan import plan
from services.placement.values import ExecutorView, Load, Plan, Resident, World

GB = 10**9
NOW = 1_000_000.0
LIMIT_S = 1.0
"""What the design asks for."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one case."""

    case: str
    seconds: list[float]
    copies: int
    gone: int
    """Of the copies that lay before."""
    lacking: int
    """Models with fewer copies than they should have."""


def empty(executors: int, models: int, seed: int, fill: float = 0.7) -> World:
    """A mesh without copies, whose models ask for about a share of its memory."""
    chance = random.Random(seed)
    views = {
        f"e{number:03}": ExecutorView(
            "x", chance.choice((24, 48, 80, 141)) * GB, {"zone": chance.choice("abc"), "gpu": chance.choice(("h", "a"))}
        )
        for number in range(executors)
    }
    left = sum(view.memory_bytes for view in views.values()) * fill
    specs: dict[str, ModelSpec] = {}
    for number in range(models):
        memory = chance.choice((4, 8, 16, 30, 70)) * GB
        copies = max(round(left / (models - number) / memory * chance.uniform(0.5, 1.5)), 1)
        left -= copies * memory
        spec = ModelSpec(f"m{number:03}", "x:", 4096, 100, 16, 8, 512, memory, copies)
        if number % 4 == 1:
            spec = replace(spec, scaling=Scaling(0, 2 * copies, 4, 600.0))
        if number % 5 == 1:
            spec = replace(spec, spread_label="zone")
        if number % 10 == 3:
            spec = replace(spec, required_labels={"gpu": "h"})
        specs[spec.name] = replace(spec, pinned=number % 20 == 7)
    return World(specs, views, now=NOW)


def with_demand(world: World, seed: int) -> World:
    """Works for every second model, and some that wait for models that lie nowhere."""
    chance = random.Random(seed)
    loads = {}
    for name in world.models:
        works = chance.choice((0, 0, 3, 20, 60))
        waiting = works // 3
        loads[name] = Load(works - waiting, waiting, chance.uniform(0, 20), NOW - chance.uniform(0, 900), works)
    return replace(world, loads=loads)


def settled(world: World) -> World:
    """The same once its plans have been carried out and everything answers."""
    for _ in range(5):
        made = plan(world)
        views = {name: replace(view, residents={}) for name, view in world.executors.items()}
        residents: dict[str, dict[str, Resident]] = {name: {} for name in views}
        for copy in made.copies:
            residents[copy.executor][copy.spec.pool] = Resident("ready", NOW - 5000, copy.spec.copy_bytes)
        views = {name: replace(view, residents=residents[name]) for name, view in views.items()}
        copies = [replace(copy, placed_at=NOW - 6000) for copy in made.copies]
        world = replace(world, executors=views, copies=copies)
    return world


def cases(executors: int, models: int) -> dict[str, Callable[[], World]]:
    """By name, what makes the mesh that is planned."""
    calm = settled(empty(executors, models, 1))
    busy = settled(with_demand(empty(executors, models, 1), 2))
    full = settled(with_demand(empty(executors, models, 3, fill=1.05), 4))
    rolled = {
        name: replace(spec, version="2", pool="") if int(name[1:]) % 2 else spec for name, spec in calm.models.items()
    }
    fewer = {name: view for name, view in busy.executors.items() if int(name[1:]) % 20}
    return {
        "nothing placed yet": lambda: with_demand(empty(executors, models, 1), 2),
        "nothing to do": lambda: calm,
        "demand has changed": lambda: with_demand(busy, 5),
        "one executor lost": lambda: replace(busy, executors=dict(list(busy.executors.items())[1:])),
        "a twentieth of the executors lost": lambda: replace(busy, executors=fewer),
        "half of the models roll out": lambda: replace(calm, models=rolled),
        "no room: more is wanted than there is": lambda: with_demand(full, 6),
    }


def measure(case: str, world: World, rounds: int) -> Result:
    """Plans one mesh several times."""
    seconds, made = [], Plan([], {})
    for _ in range(rounds):
        started = time.perf_counter()
        made = plan(world)
        seconds.append(time.perf_counter() - started)
    gone = {copy.key for copy in world.copies} - {copy.key for copy in made.copies}
    lacking = sum(lack.missing > 0 for lack in made.lacks.values())
    return Result(case, [round(one, 4) for one in seconds], len(made.copies), len(gone), lacking)


def main() -> None:
    """Entry point; exits with 1 when a plan took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", type=int, default=500)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write every run as JSON")
    arguments = parser.parse_args()
    results = [
        measure(case, make(), arguments.rounds) for case, make in cases(arguments.executors, arguments.models).items()
    ]
    table = Table(title=f"Plans: {arguments.executors} executors, {arguments.models} models")
    for column in ("case", "median s", "worst s", "copies", "moved or withdrawn", "models that lack copies"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for result in results:
        median, worst = statistics.median(result.seconds), max(result.seconds)
        counts = map(str, (result.copies, result.gone, result.lacking))
        table.add_row(result.case, f"{median:.3f}", f"{worst:.3f}", *counts)
    console = Console(width=130)
    console.print(table)
    cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    machine = f"{cores}, Python {platform.python_version()}"
    console.print(machine)
    if arguments.out:
        runs = [{"case": one.case, "seconds": one.seconds, "copies": one.copies, "gone": one.gone,
                 "lacking": one.lacking} for one in results]  # fmt: skip
        size = {"executors": arguments.executors, "models": arguments.models}
        arguments.out.write_text(json.dumps({"machine": machine, **size, "cases": runs}, indent=1))
    if max(statistics.median(one.seconds) for one in results) > LIMIT_S:
        raise SystemExit(f"a plan took more than {LIMIT_S:g} s")


if __name__ == "__main__":
    main()
