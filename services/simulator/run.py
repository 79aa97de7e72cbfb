"""One run of the simulator: a trace, a sweep over it, and the report in a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.batcher.rules import TierRules
from services.batcher.scheduling import SchedulingRules
from services.simulator import page, plots, report, step_times, sweep
from services.simulator.measure import Slo
from services.simulator.mix import Mix, arrivals
from services.simulator.points import Point, knee
from services.simulator.report import About
from services.simulator.sweep import Progress, Sweep
from services.simulator.trace import read
from services.simulator.values import Setup


@dataclass(frozen=True, slots=True)
class Engine:
    """An executor, as far as the simulator plays it."""

    name: str
    source: str
    """Of its constants."""
    step: Simulation
    slots: int
    cache_tokens: int
    step_tokens: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of a run."""

    trace: Path
    engine: Engine
    executors: int
    block_tokens: int
    """0: the trace's own."""
    policies: Sequence[str]
    loads: Sequence[tuple[str, Mix]]
    slo: Slo
    seed: int
    jobs: int
    command: str
    rules: SchedulingRules = SchedulingRules()


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run has brought, before it is written."""

    about: About
    points: Sequence[Point]

    @property
    def detail(self) -> str:
        """The name of the load that is shown in detail."""
        return knee(self.points).name


def engine(name: str) -> Engine:
    """The executor of a GPU class. Raises ValueError for an unknown one."""
    found = step_times.gpu_class(name)
    return Engine(name, found.notes, found.step, found.slots, found.blocks_tokens, found.step_tokens)


def run(order: Order, progress: Progress) -> Finished:
    """Runs the sweep. Raises TraceInvalid, OSError, and ValueError for what does not go together."""
    trace = read(order.trace)
    block_tokens = order.block_tokens or trace.block_tokens or 64
    if order.engine.cache_tokens < block_tokens:
        raise ValueError(f"a cache of {order.engine.cache_tokens} tokens has no block of {block_tokens}")
    setup = Setup(
        executors=order.executors,
        step=order.engine.step,
        slots=order.engine.slots,
        blocks=order.engine.cache_tokens // block_tokens,
        block_tokens=block_tokens,
        step_tokens=order.engine.step_tokens,
        scheduling=order.rules,
        tiers={Tier.INTERACTIVE: TierRules(target_s=order.slo.first_token_s, stretch=order.slo.stretch)},
        seed=order.seed,
    )
    for _, mix in order.loads:
        arrivals(trace, replace(mix, copies=min(mix.copies, 1)), block_tokens)  # whether it can be made, told at once
    points = sweep.run(Sweep(order.trace, order.policies, order.loads, setup, order.slo, order.jobs), progress)
    about = About(
        command=order.command,
        trace=order.trace.name,
        form=trace.form,
        trace_requests=len(trace.requests),
        trace_s=trace.duration_s,
        mix=order.loads[0][1],
        setup=setup,
        gpu=order.engine.name,
        source=order.engine.source,
        slo=order.slo,
    )
    return Finished(about, points)


def write(finished: Finished, folder: Path) -> list[Path]:
    """Writes result.json, the plots and report.html; returns what it wrote. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(finished.points, finished.detail, finished.about.slo)
    written = [folder / "result.json", folder / "report.html", *(folder / f"{plot.name}.png" for plot in drawn)]
    written[0].write_text(json.dumps(report.document(finished.about, finished.points), indent=1) + "\n")
    written[1].write_text(page.render(finished.about, finished.points, drawn), encoding="utf-8")
    for path, plot in zip(written[2:], drawn, strict=True):
        path.write_bytes(plot.png)
    return written
