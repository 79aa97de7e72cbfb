"""`headrace drill`."""

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from google.protobuf import json_format
from rich.console import Console
from rich.live import Live
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.client.errors import HeadraceError
from services.console.commands.asking import table
from services.console.drill import page, plots
from services.console.drill.run import TIERS, Doors, Drill
from services.console.drill.values import Bounds, Order, Result, Rung, Sample, Verdict, encode
from services.console.operations import Operations, told
from services.console.problem import Problem

IN_FORCE_S = 1.0
"""After which a rule that was written is in force everywhere."""
LEAST_ANSWER_S, TARGETS = 60.0, 4
"""An answer is waited for as long as that, or so many times what its tier lets its first token take."""
STYLES = {Verdict.GO: "green", Verdict.NO_GO: "bold red", Verdict.UNKNOWN: "yellow"}


@dataclass(frozen=True, slots=True)
class Typed:
    """The options, as they were typed."""

    model: str | None
    tier: str
    scale: float
    bounds: Bounds
    first_per_s: float
    growth: float
    hold_s: float
    words: int
    tokens: int
    protected_key: str
    out: Path


def drill(target: str, key: str, typed: Typed, console: Console) -> bool:
    """Runs a drill, shows what it found, writes the report; whether every rung did what it says. Raises Problem."""
    try:
        result = asyncio.run(_drill(target, key, typed, console))
    except HeadraceError as error:
        raise told(error, target) from error
    show(result, console)
    try:
        written = write(result, typed.out)
    except OSError as error:
        raise Problem(f"{typed.out} cannot be written", [error.strerror or str(error)]) from error
    console.print(f"{written}", soft_wrap=True)
    return result.passed


def write(result: Result, folder: Path) -> Path:
    """The document, the plots and the page, named after the tier; returns the page's path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(result) if result.samples else []
    (folder / f"{result.order.tier}.json").write_bytes(encode(result) + b"\n")
    for plot in drawn:
        (folder / f"{result.order.tier}-{plot.name}.png").write_bytes(plot.png)
    path = folder / f"{result.order.tier}.html"
    path.write_text(page.render(result, drawn), encoding="utf-8")
    return path


def show(result: Result, console: Console) -> None:
    """What was found, as a table."""
    rows = []
    for found in result.rungs:
        reached = "" if found.reached_s is None else f"{found.reached_s:.1f} s"
        rate = "" if found.per_s is None else f"{found.per_s:.1f}/s"
        verdict = Text(found.check.verdict.value, STYLES[found.check.verdict])
        rows.append((found.rung.name, f"{found.rung.at:g}", reached, rate, verdict, found.check.evidence))
    table(console, ("rung", "at", "reached after", "load", "", "evidence"), (), rows)
    console.print()
    checks = [(check.what, Text(check.verdict.value, STYLES[check.verdict]), check.evidence) for check in result.checks]
    table(console, ("the ladder", "", "evidence"), (), checks)
    console.print(f"\nThe load ended because {result.stopped}. {page.headline(result)}.", soft_wrap=True)


async def _drill(target: str, key: str, typed: Typed, console: Console) -> Result:
    async with Operations(target, key) as operations:
        policies = await operations.every("ListPolicies", pb.ListPoliciesRequest(), "objects")
        models, statuses = await operations.models()
        ready = [status.model for status in statuses if status.ready]
        tier = _tier(policies, typed.tier)
        order = _order(typed, tier, policies, models, ready)
        operators = frozenset(each.tenant.name for each in policies if each.tenant.operator)
        doors = Doors(target, key, operators, typed.protected_key)
        async with _scaled(operations, tier, typed, console):
            return await _watched(order, doors, console)


async def _watched(order: Order, doors: Doors, console: Console) -> Result:
    """Runs it under a line that says how it goes."""
    with Live(Text("asking the mesh"), console=console, transient=True, refresh_per_second=5) as live:
        return await Drill(order, doors, _line(order, live)).run(shlex.join(["headrace", *sys.argv[1:]]))


def _line(order: Order, live: Live) -> Callable[[Sample, int], None]:
    def update(sample: Sample, sent: int) -> None:
        names = [rung.name for rung in order.ladder[: sample.level]]
        live.update(
            Text(
                f"{sample.at:6.1f} s  {sample.per_s:6.1f} requests/s  {sent:,} sent  saturation {sample.saturation:.2f}"
                f"  level {sample.level} of {len(order.ladder)}  {', '.join(names)}"
            )
        )

    return update


def _tier(policies: Sequence[pb.PolicyObject], name: str) -> policy_pb2.TierPolicy:
    tier = next((each.tier for each in policies if each.HasField("tier") and each.tier.tier == TIERS[name]), None)
    if tier is None or not tier.ladder:
        advice = "give the tier a `ladder`: docs/degradation.md has the default one"
        raise Problem(f"the {name} tier has no ladder: there is nothing to drill", advice=advice)
    return tier


def _order(
    typed: Typed,
    tier: policy_pb2.TierPolicy,
    policies: Sequence[pb.PolicyObject],
    models: Sequence[registry_pb2.Model],
    ready: Sequence[str],
) -> Order:
    """What is meant. Raises Problem."""
    routes = {each.route.alias: each.route for each in policies if each.HasField("route")}
    name = typed.model or next((alias for alias, route in sorted(routes.items()) if route.model in ready), None)
    name = name or next(iter(sorted(ready)), None)
    if name is None:
        raise Problem("no model is ready", advice="`headrace models` says why")
    route = routes.get(name)
    bases = {model.name: model.base or model.name for model in models}
    wanted = route.model if route is not None else name
    if wanted not in bases:
        raise Problem(f"no model or route is called {name}", advice="`headrace models` lists them")
    return Order(
        model=name,
        base=bases[wanted],
        small=route.small_model if route is not None else "",
        tier=typed.tier,
        ladder=[_rung(rung, typed.scale) for rung in tier.ladder],
        recover_s=tier.recover_after.ToMicroseconds() / 1e6 or 15.0,
        scale=typed.scale,
        first_per_s=typed.first_per_s,
        growth=typed.growth,
        hold_s=typed.hold_s,
        words=typed.words,
        tokens=typed.tokens,
        answer_s=max(LEAST_ANSWER_S, TARGETS * tier.target_first_token.ToMicroseconds() / 1e6),
        bounds=typed.bounds,
    )


def _rung(rung: policy_pb2.Rung, scale: float) -> Rung:
    return Rung(rung.name, rung.at * scale, rung.WhichOneof("step") or "no_extras", rung.clamp_output_tokens)


@asynccontextmanager
async def _scaled(
    operations: Operations, tier: policy_pb2.TierPolicy, typed: Typed, console: Console
) -> AsyncIterator[None]:
    """Within it, rungs begin at another saturation. What was there is kept in a file, and put back."""
    if typed.scale == 1:
        yield
        return
    scaled = policy_pb2.TierPolicy()
    scaled.CopyFrom(tier)
    for rung in scaled.ladder:
        rung.at *= typed.scale
    typed.out.mkdir(parents=True, exist_ok=True)
    kept = typed.out / f"{typed.tier}-before.yaml"
    document = json_format.MessageToDict(tier, preserving_proto_field_name=True)
    kept.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    console.print(
        f"for the drill, rungs begin at {typed.scale:g} times their saturation; before: {kept}", soft_wrap=True
    )
    try:
        await operations.ask("ApplyPolicy", pb.ApplyPolicyRequest(objects=[pb.PolicyObject(tier=scaled)]))
        await asyncio.sleep(IN_FORCE_S)
        yield
    finally:
        await operations.ask("ApplyPolicy", pb.ApplyPolicyRequest(objects=[pb.PolicyObject(tier=tier)]))
