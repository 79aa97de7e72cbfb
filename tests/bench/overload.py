"""Ten times too much: what the mesh does with 10 times its peak goodput, for a minute.

    python -m tests.bench.overload [--factor 10] [--seconds 60] [--executors 2] [--out FILE.json]

A mesh of its own, real processes, the simulated engine. First the peak: requests in flight grow stage by stage, and
the best stage counts, from when it has settled. Goodput is requests a second that are answered, interactive ones with
their first token within the target as the client sees it. Then the flood: FACTOR times the peak, open loop, from three
interactive tenants, of which one stays below its share, and one async tenant; nobody heeds RetryInfo. Then 10 s of
silence.

The engine is slow enough to be the bottleneck on two cores. How long the mesh's own threads waited for a core stands
beside the figures: on a machine that others use, milliseconds are theirs.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from libs.telemetry import names
from tests.bench import scrape
from tests.bench.crowd import Plan, Request, Tenant
from tests.system.mesh import Mesh

MODEL = "slow"
ENGINE = {
    "name": MODEL, "source": "simulated:", "engines": ["simulated"], "memory_bytes": 1_000_000,
    "context_tokens": 8192, "blocks": 640, "block_tokens": 32, "slots": 64, "step_tokens": 512,
    "capabilities": ["chat"],
    "simulation": {
        "step_base_us": 10_000, "weights_us": 20_000, "prefill_token_us": 100, "sequence_us": 150, "seed": 7
    },
}  # fmt: skip
"""Some 15 requests a second and executor; its blocks are short before its slots are."""
TARGET_S = 2.0
"""Of the interactive tier's first token: deploy/policy/tiers/interactive.yaml."""
REFUSED_S = 0.05
SHARES = {"flood": 0.5, "torrent": 0.28, "brook": 0.02, "night": 0.2}
"""Of the offered load; a fair share would be a third of a tenth for each interactive tenant. `night` is async."""
FLIGHTS = (64, 48, 32, 32)
"""In flight, added one after the other while the peak is looked for."""
SETTLED_S = 3.0
"""Of each stage of that, and of the flood, what is not counted."""
QUIET_S = 10.0
RESOURCE_EXHAUSTED = 8


def key(name: str) -> str:
    """The key of a tenant of this benchmark."""
    return f"headrace-bench-{name}"


def write_policy(
    folder: Path, weights: Mapping[str, float], models: Sequence[Mapping[str, object]] = (ENGINE,)
) -> None:
    """Tenants, by name, and models, as files of the policy."""
    for kind in ("tenants", "models"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, weight in weights.items():
        record = {"name": name, "key_sha256": [hashlib.sha256(key(name).encode()).hexdigest()], "weight": weight}
        (folder / "tenants" / f"{name}.yaml").write_text(yaml.safe_dump(record))
    for model in models:
        (folder / "models" / f"{model['name']}.yaml").write_text(yaml.safe_dump(dict(model)))


def play(plan: Plan, then: Callable[[], None] = lambda: None) -> tuple[list[Request], list[tuple[float, float]]]:
    """Has a process of its own send a plan; what became of the requests, and when that process was late.

    Args:
        then: Called when the last request was sent, before the last answers are there.
    """
    command = [sys.executable, "-m", "tests.bench.crowd"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        json.dump(asdict(plan), crowd.stdin)
        crowd.stdin.close()
        for word in ("begin", "end"):
            if crowd.stdout.readline().strip() != word:
                raise SystemExit("the clients failed")
        then()
        seen = json.loads(crowd.stdout.readline())
    return [Request(**each) for each in seen["requests"]], [(at, late) for at, late in seen["late"]]


def is_good(request: Request) -> bool:
    """Answered, and if somebody waits for it, begun in time."""
    return request.code == 0 and (request.patient or request.first - request.sent <= TARGET_S)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Of a stretch of time, by when answers ended."""

    requests_per_s: float
    tokens_per_s: float
    """Prompts and answers of these requests."""

    @classmethod
    def of(cls, requests: Sequence[Request], start: float, end: float) -> "Goodput":
        good = [each for each in requests if is_good(each) and start <= each.ended < end]
        length = end - start
        return cls(len(good) / length, sum(each.prompt + each.tokens for each in good) / length)


def find_peak(mesh: Mesh, stage_s: float, flights: Sequence[int] = FLIGHTS) -> Goodput:
    """The best stage of a closed loop that grows: a mean of seconds, since the best of many short windows is chance."""
    loops = [Tenant("flood", key("flood"), flight=n, from_s=i * stage_s) for i, n in enumerate(flights)]
    seconds = stage_s * len(flights)
    requests, _ = play(Plan(mesh.target, MODEL, loops, seconds, seed=1, drain=False))
    settled = min(SETTLED_S, stage_s / 2)
    stages = [Goodput.of(requests, each.from_s + settled, each.from_s + stage_s) for each in loops]
    return max(stages, key=lambda stage: stage.requests_per_s)


@dataclass(frozen=True, slots=True)
class Party:
    """One tenant under overload."""

    tier: str
    offered: int
    answered: int
    good: int
    refused: int
    refused_share: float
    queued_p99_s: float
    first_token_p99_s: float


@dataclass(slots=True)
class Result:
    """Of one run."""

    executors: int
    factor: float
    seconds: float
    peak: Goodput
    offered_per_s: float = 0.0
    goodput: Goodput = field(default_factory=lambda: Goodput(0.0, 0.0))
    share_of_peak: float = 0.0
    share_of_peak_tokens: float = 0.0
    queued_p99_s: float = 0.0
    """Interactive, as answers tell it."""
    queued_p99_metric_s: float = 0.0
    """Interactive, from the batcher's histogram."""
    first_token_p99_s: float = 0.0
    """Interactive, at the client."""
    late_share: float = 0.0
    """Of the interactive requests that were answered, those whose first token came after the target."""
    overdue_share: float = 0.0
    """Of the same, those that were in the queue for longer than that: the mesh's doing, however slow the client is."""
    preemptions: float = 0.0
    pushes: float = 0.0
    refused: int = 0
    refused_with_retry: int = 0
    refused_code: int = 0
    """Refused with RESOURCE_EXHAUSTED."""
    refused_in_time: float = 0.0
    """Share of the refused that knew it within 50 ms."""
    refused_in_time_calm: float = 0.0
    """Of those during which the client itself was never late by more than 5 ms."""
    refused_p50_ms: float = 0.0
    refused_p99_ms: float = 0.0
    refused_p99_calm_ms: float = 0.0
    unanswered: int = 0
    """Neither answered nor refused when the flood ended: on an executor, or in the queue."""
    parties: dict[str, Party] = field(default_factory=dict)
    rss_mb: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Before, at the end, and after the silence."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Cores used during the flood."""
    waited: dict[str, float] = field(default_factory=dict)
    """Share of the flood in which the main thread could have run and had no core."""
    others_cpu: float = 0.0
    """Cores that all other processes used, the clients among them."""


def flood(mesh: Mesh, executors: int, peak: Goodput, factor: float, seconds: float, quiet_s: float = QUIET_S) -> Result:
    """Offers a multiple of the peak, and looks at what comes of it, then and `quiet_s` later."""
    rate = factor * peak.requests_per_s
    tenants = [Tenant(name, key(name), rate * share, patient=name == "night") for name, share in SHARES.items()]
    ports = [mesh.metrics_port(f"executor-{number}") for number in range(1, executors + 1)]
    batcher = mesh.metrics_port("batcher-1")
    components = [each.name for each in mesh.snapshot().components]
    wait, labels = names.BATCHER_WAIT.name, {"model": MODEL, "tier": "interactive"}

    def preemptions() -> float:
        return sum(scrape.total(port, names.EXECUTOR_PREEMPTIONS.name, model=MODEL) for port in ports)

    thrown, pushed = preemptions(), scrape.total(batcher, names.BATCHER_PUSHES.name, model=MODEL)
    waits, before, machine = scrape.buckets(batcher, wait, **labels), scrape.look(mesh, components), busy_s()
    looks: list[scrape.Look] = []
    requests, late = play(
        Plan(mesh.target, MODEL, tenants, seconds, seed=2, drain=False),
        lambda: looks.append(scrape.look(mesh, components)),
    )
    machine = busy_s() - machine
    waits = scrape.since(waits, scrape.buckets(batcher, wait, **labels))
    time.sleep(quiet_s)
    end, after = looks[0], scrape.look(mesh, components)
    result = Result(executors, factor, seconds, peak, offered_per_s=len(requests) / seconds)
    result.preemptions = preemptions() - thrown
    result.pushes = scrape.total(batcher, names.BATCHER_PUSHES.name, model=MODEL) - pushed
    result.queued_p99_metric_s = scrape.quantile(waits, 0.99)
    result.rss_mb = {name: (before.rss_mb[name], end.rss_mb[name], after.rss_mb[name]) for name in components}
    result.cpu = {name: (end.cpu_s[name] - before.cpu_s[name]) / seconds for name in components}
    result.waited = {name: (end.waited_s[name] - before.waited_s[name]) / seconds for name in components}
    result.others_cpu = max(machine / seconds - sum(result.cpu.values()), 0.0)
    _judge(result, requests, late)
    return result


def _judge(result: Result, requests: Sequence[Request], late: Sequence[tuple[float, float]]) -> None:
    settled = min(SETTLED_S, result.seconds / 2)
    result.goodput = Goodput.of(requests, settled, result.seconds)
    result.share_of_peak = result.goodput.requests_per_s / result.peak.requests_per_s
    result.share_of_peak_tokens = result.goodput.tokens_per_s / result.peak.tokens_per_s
    answered = [each for each in requests if each.code == 0 and not each.patient]
    result.queued_p99_s = rank([each.queued for each in answered], 0.99)
    result.first_token_p99_s = rank([each.first - each.sent for each in answered], 0.99)
    result.late_share = sum(not is_good(each) for each in answered) / max(len(answered), 1)
    result.overdue_share = sum(each.queued > TARGET_S for each in answered) / max(len(answered), 1)
    refused = [each for each in requests if each.code > 0]
    took = [(each.ended - each.sent) for each in refused]
    calm = [t for t, each in zip(took, refused, strict=True) if not _was_late(late, each.sent, each.ended)]
    result.refused, result.refused_with_retry = len(refused), sum(each.retry > 0 for each in refused)
    result.refused_code = sum(each.code == RESOURCE_EXHAUSTED for each in refused)
    result.refused_in_time = sum(t < REFUSED_S for t in took) / max(len(took), 1)
    result.refused_in_time_calm = sum(t < REFUSED_S for t in calm) / max(len(calm), 1)
    result.refused_p50_ms, result.refused_p99_ms = (1000 * rank(took, share) for share in (0.5, 0.99))
    result.refused_p99_calm_ms = 1000 * rank(calm, 0.99)
    result.unanswered = sum(each.code < 0 for each in requests)
    for name in SHARES:
        own = [each for each in requests if each.tenant == name]
        well = [each for each in own if each.code == 0]
        turned_away = sum(each.code > 0 for each in own)
        result.parties[name] = Party(
            "async" if own[0].patient else "interactive", len(own), len(well), sum(map(is_good, well)), turned_away,
            turned_away / len(own), rank([each.queued for each in well], 0.99),
            rank([each.first - each.sent for each in well], 0.99),
        )  # fmt: skip


def _was_late(late: Sequence[tuple[float, float]], start: float, end: float) -> bool:
    return any(at < end and at + how_much + 0.005 > start for at, how_much in late)


def rank(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them is below; 0 for none."""
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)] if ranked else 0.0


def busy_s() -> float:
    """Seconds that the cores of this machine have worked, for whomever, added up."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def show(result: Result, console: Console) -> None:
    """Tables."""
    table = Table("figure", "value", "target", title=f"{result.factor:g} times the peak for {result.seconds:g} s")
    peak, goodput = result.peak, result.goodput
    rows = [
        ("peak goodput", f"{peak.requests_per_s:.1f} requests/s, {peak.tokens_per_s:,.0f} tokens/s", ""),
        ("offered", f"{result.offered_per_s:.0f} requests/s", ""),
        ("goodput", f"{goodput.requests_per_s:.1f} requests/s, {goodput.tokens_per_s:,.0f} tokens/s", ""),
        ("of the peak", f"{result.share_of_peak:.1%} of requests, {result.share_of_peak_tokens:.1%} of tokens", "95 %"),
        ("interactive queue time, p99", f"{result.queued_p99_s:.2f} s", f"{TARGET_S:g} s"),
        ("the same, batcher's metric", f"{result.queued_p99_metric_s:.2f} s", f"{TARGET_S:g} s"),
        ("interactive first token, p99", f"{result.first_token_p99_s:.2f} s", ""),
        ("first token late", f"{result.late_share:.2%} of the answered", ""),
        ("in the queue for longer", f"{result.overdue_share:.2%} of the answered", ""),
        ("engine preemptions", f"{result.preemptions:g}", "0"),
        ("async pushed out", f"{result.pushes:g}", ""),
        ("refused", f"{result.refused:,}; {result.refused_with_retry:,} with RetryInfo", "all"),
        ("refused within 50 ms", f"{result.refused_in_time:.2%}", "100 %"),
        ("the same, client never late", f"{result.refused_in_time_calm:.2%}", "100 %"),
        ("refused after, p50, p99", f"{result.refused_p50_ms:.1f} ms, {result.refused_p99_ms:.1f} ms", "50 ms"),
        ("p99, client never late", f"{result.refused_p99_calm_ms:.1f} ms", "50 ms"),
        ("open at the end", f"{result.unanswered}", ""),
        ("cores used by others", f"{result.others_cpu:.2f} of {psutil.cpu_count()}", ""),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    table = Table("tenant", "tier", "offered", "answered", "good", "refused", "queue p99", "first token p99")
    for name, party in result.parties.items():
        share = f"{party.refused:,} ({party.refused_share:.1%})"
        table.add_row(
            name, party.tier, f"{party.offered:,}", f"{party.answered:,}", f"{party.good:,}", share,
            f"{party.queued_p99_s:.2f} s", f"{party.first_token_p99_s:.2f} s",
        )  # fmt: skip
    console.print(table)
    table = Table("process", "RSS before", "at the end", "after 10 s", "cores", "waited for one")
    for name, memory in result.rss_mb.items():
        cores = (f"{result.cpu[name]:.2f}", f"{result.waited[name]:.0%}")
        table.add_row(name, *(f"{mb:.0f} MB" for mb in memory), *cores)
    console.print(table)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--stage", type=float, default=12.0, help="seconds of each step of the search for the peak")
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder), dict.fromkeys(SHARES, 1.0))
        environment = {"HEADRACE_TRACE_RATIO": "0"}
        with Mesh(executors=arguments.executors, envoy=False, extra_policy=Path(folder), env=environment) as mesh:
            peak = find_peak(mesh, arguments.stage)
            console.print(f"peak: {peak.requests_per_s:.1f} requests/s, {peak.tokens_per_s:,.0f} tokens/s", style="dim")
            result = flood(mesh, arguments.executors, peak, arguments.factor, arguments.seconds)
    show(result, console)
    if arguments.out:
        machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
        arguments.out.write_text(json.dumps({"machine": machine, **asdict(result)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
