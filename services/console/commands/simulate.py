"""`headrace simulate`."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from libs.catalogue import options
from services.batcher.policies import NAMES
from services.console import model_files
from services.console.problem import Problem
from services.simulator import report, run
from services.simulator.measure import Slo
from services.simulator.mix import Mix, tenants
from services.simulator.trace import TraceInvalid

ONLY_IN_REPORT = ("p90", "worst gap p99", "end p99", "queue p99", "output", "pushed")
"""Columns for which a terminal has no room."""
SOURCE = "the simulation block of {}"


@dataclass(frozen=True, slots=True)
class Simulate:
    """The options, as they were typed."""

    trace: Path
    executors: int
    gpu: str
    policies: str
    rates: str
    requests_per_s: str
    copies: int
    tenants: str
    async_share: float
    adapters: int
    first: str
    requests: int
    spread: str
    slo: Slo
    block_tokens: int
    seed: int
    jobs: int
    out: Path


def simulate(typed: Simulate, console: Console) -> None:
    """Runs the sweep, shows the table, and writes the report. Raises Problem."""
    order = _order(typed)
    try:
        with _progress(console, len(order.policies) * len(order.loads)) as shown:
            task = shown.add_task("simulating", total=float(len(order.policies) * len(order.loads)), done=0)
            finished = run.run(order, lambda shares, done: shown.update(task, completed=sum(shares), done=done))
        console.print(table(finished))
        written = run.write(finished, typed.out)
    except TraceInvalid as invalid:
        raise Problem(f"{typed.trace} is not a trace: {invalid.headline}", invalid.faults) from invalid
    except OSError as error:
        raise Problem(
            f"{error.filename or typed.out} cannot be read or written", [error.strerror or str(error)]
        ) from error
    except ValueError as error:
        raise Problem("the simulation cannot be made", [str(error)]) from error
    for sentence in report.verdict(finished.points):
        console.print(sentence, soft_wrap=True)
    console.print(f"{written[1]}", soft_wrap=True)


def table(finished: run.Finished) -> Table:
    """The points, load by load."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    shown = [index for index, column in enumerate(report.COLUMNS) if column.title not in ONLY_IN_REPORT]
    made.add_column("load", no_wrap=True)
    for index in shown:
        column = report.COLUMNS[index]
        title = f"{column.title}\n[dim]{column.unit}[/dim]" if column.unit else column.title
        made.add_column(title, justify="left" if not index else "right", no_wrap=True)
    before = ""
    for point in sorted(finished.points, key=lambda each: each.load.requests_per_s):
        cells = report.row(point)
        if before and point.load.name != before:
            made.add_section()
        made.add_row("" if point.load.name == before else point.load.name, *(cells[index] for index in shown))
        before = point.load.name
    return made


def _order(typed: Simulate) -> run.Order:
    """What is meant. Raises Problem with all that is wrong."""
    wrong: list[str] = []
    policies = list(NAMES) if typed.policies == "all" else [name.strip() for name in typed.policies.split(",")]
    unknown = [name for name in policies if name not in NAMES]
    if unknown:
        wrong.append(f"--policy {', '.join(unknown)}: there are {', '.join(NAMES)}, or all")
    mix = Mix()
    try:
        mix = Mix(
            copies=typed.copies,
            tenants=tenants(typed.tenants),
            async_share=typed.async_share,
            adapters=typed.adapters,
            first_s=_seconds(typed.first),
            requests=typed.requests,
            spread_s=_seconds(typed.spread),
            seed=typed.seed,
        )
    except ValueError as error:
        wrong.append(str(error))
    loads: list[tuple[str, Mix]] = []
    try:
        if typed.requests_per_s:
            loads = [(f"{rate:g}/s", replace(mix, requests_per_s=rate)) for rate in _numbers(typed.requests_per_s)]
        else:
            loads = [(f"×{rate:g}", replace(mix, rate=rate)) for rate in _numbers(typed.rates)]
    except ValueError as error:
        wrong.append(str(error))
    engine = None
    try:
        engine = _engine(typed.gpu)
    except ValueError as error:
        wrong.append(str(error))
    if wrong or engine is None:
        raise Problem("the simulation cannot be made", wrong)
    return run.Order(
        trace=typed.trace,
        engine=engine,
        executors=typed.executors,
        block_tokens=typed.block_tokens,
        policies=policies,
        loads=loads,
        slo=typed.slo,
        seed=typed.seed,
        jobs=typed.jobs or os.cpu_count() or 1,
        command=shlex.join(["headrace", *sys.argv[1:]]),
    )


def _engine(gpu: str) -> run.Engine:
    """A class of GPUs, or the model of a document whose `simulation` was calibrated."""
    if not gpu.endswith(model_files.SUFFIXES):
        return run.engine(gpu)
    files = model_files.load([gpu])
    if files.faults:
        raise ValueError("; ".join(map(str, files.faults)))
    found = next((model for model in files.models if model.HasField("simulation")), None)
    if found is None:
        raise ValueError(f"--gpu {gpu}: none of its models has a simulation block")
    missing = [name for name in ("slots", "blocks", "block_tokens", "step_tokens") if not getattr(found, name)]
    if missing:
        raise ValueError(f"--gpu {gpu}: {found.name or 'the model'} has no {', '.join(missing)}")
    return run.Engine(
        name=found.name,
        source=SOURCE.format(Path(gpu).name),
        step=options.simulation(found.simulation),
        slots=found.slots,
        cache_tokens=found.blocks * found.block_tokens,
        step_tokens=found.step_tokens,
    )


def _numbers(text: str) -> Sequence[float]:
    """ "0.5,1,2". Raises ValueError."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'"{text}" is not a list of numbers like 0.5,1,2') from None
    if not all(0 < number < float("inf") for number in found):
        raise ValueError(f'"{text}": each is above 0')
    return list(dict.fromkeys(found))


def _seconds(text: str) -> float:
    """ "90", "90s", "10m", "1.5h"; "" is 0. Raises ValueError."""
    if not text:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text)
    if found is None:
        raise ValueError(f'"{text}" is not a time like 90s, 10m or 1.5h')
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def _progress(console: Console, total: int) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[done]} of " + f"{total} done"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
