"""`headrace simulate calibrate`."""

import asyncio
from dataclasses import dataclass, fields

from rich.console import Console
from rich.progress import Progress

from libs.catalogue.options import Simulation
from libs.client import HeadraceClient
from libs.client.errors import HeadraceError
from services.console.operations import Operations, told
from services.console.problem import Problem
from services.simulator import probes
from services.simulator.calibrate import Calibration
from services.simulator.calibrate import calibrate as measure
from services.simulator.probes import Facts


@dataclass(frozen=True, slots=True)
class Calibrate:
    """What to measure, and how."""

    target: str
    key: str
    model: str
    longest: int
    """Tokens of the longest prompt; 0: what fits."""
    widest: int
    """Most requests at once; 0: the slots, up to 16."""
    repeats: int
    seed: int


def calibrate(what: Calibrate, out: Console, notes: Console) -> None:
    """Prints the fitted constants as YAML to `out`, how good they are to `notes`. Raises Problem."""
    try:
        found = asyncio.run(_calibrate(what, notes))
    except HeadraceError as error:
        raise told(error, what.target) from error
    except ValueError as error:
        raise Problem(f"{what.model} could not be measured", [str(error)]) from error
    out.print(block(what.model, found), soft_wrap=True)
    _judge(found, notes)


def block(model: str, found: Calibration) -> str:
    """The `simulation` of a model document."""
    fit = found.fit
    judged = f"on {fit.held_back} held-back probes median error {fit.median_error:.1%}, p90 {fit.p90_error:.1%}"
    lines = [f"simulation: # fitted to {model}: {judged}"]
    for each in fields(Simulation):
        value = getattr(fit.simulation, each.name)
        if value:
            lines.append(f"  {each.name}: {float(f'{value:.4g}'):g}")
    return "\n".join(lines)


async def _calibrate(what: Calibrate, notes: Console) -> Calibration:
    facts = await _facts(what)
    designed = probes.design(facts, what.longest, what.widest)
    async with HeadraceClient(what.target, api_key=what.key) as client:
        with Progress(console=notes, transient=True) as progress:
            task = progress.add_task(f"{len(designed)} probes, {what.repeats} times each", total=None)

            def shown(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            return await measure(client, what.model, facts, designed, what.repeats, what.seed, shown)


async def _facts(what: Calibrate) -> Facts:
    """What the catalogue says of the model. Raises Problem unless exactly one copy is ready."""
    async with Operations(what.target, what.key) as operations:
        models, statuses = await operations.models()
    found = {model.name: (model, status) for model, status in zip(models, statuses, strict=True)}
    if what.model not in found:
        raise Problem(f"the mesh has no model {what.model}", [f"it has {', '.join(sorted(found)) or 'none'}"])
    model, status = found[what.model]
    ready = status.ready
    if ready != 1:
        raise Problem(
            f"{what.model} has {ready} ready copies; one can be measured",
            advice="requests of a batch have to meet on one executor: let the others go, or give it `replicas: 1`",
        )
    return Facts(model.context_tokens, model.blocks * model.block_tokens, model.slots, model.step_tokens)


def _judge(found: Calibration, notes: Console) -> None:
    fit = found.fit
    for kind, (count, median, p90) in fit.by_kind.items():
        notes.print(f"{kind}: {count} held back, median error {median:.1%}, p90 {p90:.1%}")
    way = f"{1e3 * fit.overhead.request_s:.1f} ms a request, {1e6 * fit.overhead.token_s:.1f} µs a prompt token"
    notes.print(f"the way through the mesh and back, which is not in the model: {way}")
    if found.dropped:
        notes.print(f"{found.dropped} runs dropped: their requests did not meet, found a cache, or were refused")
