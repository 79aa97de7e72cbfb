"""Fairness between tenants on real processes: what a quiet one notices of a noisy one, and who gets how much.

    python -m tests.bench.fairness [--seconds 40] [--rounds 3] [--executors 2] [--out FILE.json]

A mesh of its own and the simulated engine, as in tests/bench/overload.py.

Isolation: a quiet tenant below its share, beside a noisy one that offers what fills the mesh, and beside the same one
that offers 100 times as much; the two in turns, with the same requests of the quiet one, medians of the rounds. A mesh
with the default engine would have to refuse thousands of requests a second on these cores, so the engine of this part
is slow: its steps take a tenth of a second. The quiet tenant is a client process of its own.

Evenness: Jain's index of what four tenants of different sizes and weights are served in a minute, who all send more
than their share. Service is what the batcher counts: tokens of prompts, and of answers twice, by weight.
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from services.simulator.fairness_index import OUTPUT_WEIGHT, jain
from tests.bench import scrape
from tests.bench.crowd import Plan, Request, Tenant
from tests.bench.overload import ENGINE, MODEL, busy_s, key, play, rank, write_policy
from tests.system.mesh import Mesh

FACTOR = 100
SLOW_MODEL = "slower"
SLOW = {
    **ENGINE, "name": SLOW_MODEL, "context_tokens": 1024, "blocks": 100,
    "simulation": {
        "step_base_us": 20_000, "weights_us": 80_000, "prefill_token_us": 100, "sequence_us": 150, "seed": 7
    },
}  # fmt: skip
"""Some two of the noisy tenant's requests a second and executor."""
NOISY = Tenant("noisy", key("noisy"), prompts=(20, 80), answers=(60, 140))
QUIET = Tenant("quiet", key("quiet"), per_s=4.0, prompts=(10, 30), answers=(4, 8))
"""A quarter of what is served, of which its share is half."""
FILLS = 60
"""Of the noisy tenant's requests in flight, all places of two executors are taken and some wait."""
CAPACITY_S = 40.0
SETTLED_S = 12.0
"""Not counted: an answer of the noisy tenant takes 10 s, so this long it takes for places to become free evenly."""
TAIL_S = 2.0
"""Before the end of the noisy tenant's requests, the quiet one sends its last."""
WEIGHTS = {"short": 1.0, "talk": 1.0, "documents": 2.0, "essays": 4.0}
BACKLOGGED = [
    Tenant("short", key("short"), 40.0, prompts=(50, 200), answers=(10, 50)),
    Tenant("talk", key("talk"), 15.0, prompts=(100, 600), answers=(25, 150)),
    Tenant("documents", key("documents"), 8.0, prompts=(1000, 3000), answers=(25, 100)),
    Tenant("essays", key("essays"), 60.0, prompts=(50, 150), answers=(150, 250)),
]
"""Each offers about five times its share."""
WARM_S, EVEN_S = 10.0, 60.0


@dataclass(frozen=True, slots=True)
class Beside:
    """What the quiet tenant saw beside the noisy one."""

    factor: int
    noisy_offered_per_s: float
    noisy_refused_share: float
    requests: int
    refused: int
    """Of all requests, also those that came before it had settled."""
    first_token_p50_s: float
    first_token_p99_s: float
    queued_p99_s: float
    """In the batcher's queue, as answers say."""
    waited: Mapping[str, float]
    """Share of the time in which a process's main thread could have run and had no core."""
    others_cpu: float
    """Cores that all other processes used, the clients among them."""


@dataclass(frozen=True, slots=True)
class Got:
    """What one of the backlogged tenants got."""

    weight: float
    offered: int
    answered: int
    refused_share: float
    served_per_s: float
    """By weight."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run."""

    executors: int
    seconds: float
    capacity_per_s: float
    """Of the noisy tenant's requests, when it is alone."""
    rounds: Sequence[tuple[Beside, Beside]]
    """At the rate that fills the mesh, and at FACTOR times that."""
    ratio_p50: float
    """Of the medians: how much slower the quiet tenant's first token is beside FACTOR times as much."""
    ratio_p99: float
    refused: int
    """Of all the quiet tenant's requests."""
    jain: float
    got: Mapping[str, Got]


def capacity(mesh: Mesh) -> float:
    """Requests of the noisy tenant per second, when it is alone and always has some waiting."""
    plan = Plan(mesh.target, SLOW_MODEL, [replace(NOISY, flight=FILLS)], CAPACITY_S, seed=1, drain=False)
    requests, _ = play(plan)
    ended = sum(each.code == 0 and each.ended >= SETTLED_S for each in requests)
    return ended / (CAPACITY_S - SETTLED_S)


def beside(mesh: Mesh, per_s: float, factor: int, seconds: float, seed: int) -> Beside:
    """The quiet tenant while the noisy one offers `factor` times a rate."""
    components = [each.name for each in mesh.snapshot().components]
    before, busy = scrape.look(mesh, components), busy_s()
    ends: list[tuple[scrape.Look, float]] = []
    loud = replace(NOISY, per_s=factor * per_s)
    flood = Plan(mesh.target, SLOW_MODEL, [loud], seconds, seed, drain=False)
    with ThreadPoolExecutor(1) as other:
        noise = other.submit(play, flood, lambda: ends.append((scrape.look(mesh, components), busy_s())))
        requests, _ = play(Plan(mesh.target, SLOW_MODEL, [QUIET], seconds - TAIL_S, seed))
        noisy, _ = noise.result()
    (end, until), *_ = ends
    own = sum(end.cpu_s[name] - before.cpu_s[name] for name in components)
    counted = [each for each in requests if each.sent >= SETTLED_S]
    well = [each for each in counted if each.code == 0]
    first = [each.first - each.sent for each in well]
    return Beside(
        factor=factor,
        noisy_offered_per_s=len(noisy) / seconds,
        noisy_refused_share=sum(each.code > 0 for each in noisy) / len(noisy),
        requests=len(counted),
        refused=sum(each.code > 0 for each in requests),
        first_token_p50_s=rank(first, 0.5),
        first_token_p99_s=rank(first, 0.99),
        queued_p99_s=rank([each.queued for each in well], 0.99),
        waited={name: (end.waited_s[name] - before.waited_s[name]) / seconds for name in components},
        others_cpu=(until - busy - own) / seconds,
    )


def evenness(mesh: Mesh) -> tuple[float, dict[str, Got]]:
    """Jain's index of four tenants that send too much, and what each got."""
    end = WARM_S + EVEN_S
    requests, _ = play(Plan(mesh.target, MODEL, BACKLOGGED, end, seed=1))
    got = {}
    for name, weight in WEIGHTS.items():
        own = [each for each in requests if each.tenant == name]
        got[name] = Got(
            weight=weight,
            offered=len(own),
            answered=sum(each.code == 0 for each in own),
            refused_share=sum(each.code > 0 for each in own) / len(own),
            served_per_s=sum(served(each, WARM_S, end) for each in own) / EVEN_S / weight,
        )
    return jain([each.served_per_s for each in got.values()]), got


def served(request: Request, start: float, end: float) -> float:
    """What a request was served between two times: its prompt with its first token, its answer evenly from then on."""
    if request.code != 0:
        return 0.0
    length = max(request.ended - request.first, 1e-6)
    answer = max(min(request.ended, end) - max(request.first, start), 0.0) / length
    prompt = request.prompt_tokens if start <= request.first < end else 0
    return prompt + OUTPUT_WEIGHT * request.tokens * answer


def measure(mesh: Mesh, executors: int, seconds: float, rounds: int, console: Console) -> Result:
    """All of it."""
    per_s = capacity(mesh)
    console.print(f"{per_s:.1f} of the noisy tenant's requests/s fill the mesh", style="dim")
    pairs = []
    for seed in range(rounds):
        once, often = (beside(mesh, per_s, factor, seconds, seed) for factor in (1, FACTOR))
        pairs.append((once, often))
        console.print(f"p99 {once.first_token_p99_s:.3f} s, {often.first_token_p99_s:.3f} s", style="dim")
    index, got = evenness(mesh)
    return Result(
        executors=executors,
        seconds=seconds,
        capacity_per_s=per_s,
        rounds=pairs,
        ratio_p50=_ratio((once.first_token_p50_s, often.first_token_p50_s) for once, often in pairs),
        ratio_p99=_ratio((once.first_token_p99_s, often.first_token_p99_s) for once, often in pairs),
        refused=sum(each.refused for pair in pairs for each in pair),
        jain=index,
        got=got,
    )


def _ratio(pairs: Iterable[tuple[float, float]]) -> float:
    before, after = zip(*pairs, strict=True)
    return float(statistics.median(after) / statistics.median(before))


def show(result: Result, console: Console) -> None:
    """Tables."""
    title = f"A quiet tenant beside one that sends {FACTOR} times as much; medians of {len(result.rounds)} rounds"
    table = Table("figure", "at 1", f"at {FACTOR}", "ratio", "target", title=title)
    columns = list(zip(*result.rounds, strict=True))

    def figures(name: str) -> list[str]:
        return [f"{statistics.median(getattr(each, name) for each in column):.3f}" for column in columns]

    table.add_row("noisy tenant's requests/s", *figures("noisy_offered_per_s"))
    table.add_row("of these refused", *figures("noisy_refused_share"))
    table.add_row("first token p50, s", *figures("first_token_p50_s"), f"{result.ratio_p50:.3f}")
    table.add_row("first token p99, s", *figures("first_token_p99_s"), f"{result.ratio_p99:.3f}", "1.1")
    table.add_row("queue p99, s", *figures("queued_p99_s"))
    table.add_row("refused", *(str(sum(each.refused for each in column)) for column in columns), "", "0")
    table.add_row("cores used by others", *figures("others_cpu"))
    for name in result.rounds[0][0].waited:
        shares = [statistics.median(each.waited[name] for each in column) for column in columns]
        table.add_row(f"{name} waited for a core", *(f"{share:.1%}" for share in shares))
    console.print(table)
    table = Table("tenant", "weight", "offered", "answered", "refused", "tokens/s by weight")
    table.title = f"Jain's index of {EVEN_S:g} s: {result.jain:.4f} (target 0.98)"
    for name, got in result.got.items():
        figure = f"{got.served_per_s:,.0f}"
        table.add_row(name, f"{got.weight:g}", str(got.offered), str(got.answered), f"{got.refused_share:.1%}", figure)
    console.print(table)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of the quiet tenant beside the noisy one, each time"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        weights = {NOISY.name: 1.0, QUIET.name: 1.0, **WEIGHTS}
        write_policy(Path(folder), weights, (ENGINE, SLOW))
        environment = {"HEADRACE_TRACE_RATIO": "0"}
        with Mesh(executors=arguments.executors, envoy=False, extra_policy=Path(folder), env=environment) as mesh:
            result = measure(mesh, arguments.executors, arguments.seconds, arguments.rounds, console)
    show(result, console)
    if arguments.out:
        machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
        arguments.out.write_text(json.dumps({"machine": machine, **asdict(result)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
