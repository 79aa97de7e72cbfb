"""Intents: how many are told rightly, how long a decision takes, what it costs in memory.

    python -m tests.bench.intents [--rounds 5] [--out FILE.json]

Six intents, 42 examples each (data/intents). Each round holds back another fifth of every intent's examples and
trains on the rest, the threshold included. "Unrelated" are 40 texts about things that neither the intents nor the
examples without an intent speak of (data/unrelated.txt). Beside the classifier that is used stands the simplest one:
the nearest centroid, with a threshold by the same rule.

A decision is timed as the worker thread makes it, tokens to intent, by the length of the text: by the clock, and in
CPU time, which other load on the machine changes less; and as a request sees it, through the queue, from the cache,
and in Poisson arrivals of new texts. Memory is this process's resident set, before and after loading.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

DATA = Path(__file__).parent / "data"
LENGTHS = {"7 tokens": 4, "32 tokens": 28, "48 tokens and more": 400}
"""Words of the texts that are timed."""
TIMES = 400
RATES = (20, 50, 200)
"""Of texts that nobody has sent before, in Poisson arrivals."""
OFFERED_S = 5.0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = min(max(arguments.rounds, 1), 5)
    memory = {"before": resident()}
    from services.router.intents.embedder import Embedder

    memory["OpenVINO, NumPy and tokenizers imported"] = resident()
    embedder = Embedder()
    memory["model loaded"] = resident()
    result = {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}, "
        f"load average {os.getloadavg()[0]:.1f}",
        "rounds": rounds,
        "quality": quality(embedder.vector, rounds),
        "decision_us": decisions(embedder.vector),
    }
    memory["after the decisions"] = resident()
    result["resident_mb"] = memory
    result["request_us"] = asyncio.run(requests(embedder.vector))
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def resident() -> float:
    """In MB."""
    return round(psutil.Process().memory_info().rss / 1e6, 1)


def quality(vector: Callable[[str], np.ndarray], rounds: int) -> dict[str, object]:
    """Means over the rounds, with the worst round."""
    from services.router.intents import classifier
    from services.router.intents.examples import read

    examples = read(DATA / "intents")
    names = list(examples.of)
    texts = [text for name in names for text in examples.of[name]] + list(examples.none)
    labels = np.repeat(np.arange(len(names) + 1), [*(len(examples.of[name]) for name in names), len(examples.none)])
    vectors = np.stack([vector(text) for text in texts])
    unrelated = np.stack([vector(text) for text in (DATA / "unrelated.txt").read_text().splitlines()])
    chance, seen = np.random.default_rng(5), labels < len(names)
    folds = np.zeros_like(labels)
    for label in range(len(names) + 1):
        of_label = np.flatnonzero(labels == label)
        folds[chance.permutation(of_label)] = np.arange(len(of_label)) % 5
    rows: dict[str, list[dict[str, float]]] = {"logistic regression": [], "nearest centroid": []}
    confusions: dict[str, int] = {}
    for number in range(rounds):
        held, rest = seen & (folds == number), folds != number
        learned = classifier.fit(names, vectors[rest], labels[rest])
        told = [learned.of(each)[0] for each in vectors[held]]
        wanted = [names[label] for label in labels[held]]
        best = learned.probabilities(vectors[held])[:, :-1].argmax(axis=1)
        none = [learned.of(each)[0] for each in vectors[~seen & (folds == number)]]
        rows["logistic regression"].append(
            {
                "accuracy": share(a == b for a, b in zip(told, wanted, strict=True)),
                "accuracy without threshold": float((best == labels[held]).mean()),
                "of another intent": share(bool(a) and a != b for a, b in zip(told, wanted, strict=True)),
                "none, rejected": share(not each for each in none),
                "unrelated, rejected": share(not learned.of(each)[0] for each in unrelated),
            }
        )
        for a, b in zip(told, wanted, strict=True):
            if a != b:
                confusions[f"{b} → {a or 'none'}"] = confusions.get(f"{b} → {a or 'none'}", 0) + 1
        rows["nearest centroid"].append(centroid(vectors, labels, held, rest, ~seen & (folds == number), unrelated))
    summary = {
        way: {
            name: [round(statistics.mean(values), 4), round(min(values), 4)] for name, values in columns(each).items()
        }
        for way, each in rows.items()
    }
    return {"intents": names, "examples": len(texts), "mean and least": summary, "confusions": confusions}


def centroid(
    vectors: np.ndarray, labels: np.ndarray, held: np.ndarray, rest: np.ndarray, none: np.ndarray, unrelated: np.ndarray
) -> dict[str, float]:
    """The same for the nearest centroid; its threshold loses a twentieth of the examples it was made of."""
    count = labels.max()
    means = np.stack([vectors[rest & (labels == label)].mean(axis=0) for label in range(count)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    threshold = np.quantile((vectors[rest & (labels < count)] @ means.T).max(axis=1), 0.05)
    likeness = vectors[held] @ means.T
    right, sure = likeness.argmax(axis=1) == labels[held], likeness.max(axis=1) >= threshold
    return {
        "accuracy": float((right & sure).mean()),
        "accuracy without threshold": float(right.mean()),
        "of another intent": float((~right & sure).mean()),
        "none, rejected": float(((vectors[none] @ means.T).max(axis=1) < threshold).mean()),
        "unrelated, rejected": float(((unrelated @ means.T).max(axis=1) < threshold).mean()),
    }


def decisions(vector: Callable[[str], np.ndarray]) -> dict[str, dict[str, float]]:
    """As the thread makes them, in microseconds."""
    from services.router.intents import classifier
    from services.router.intents.examples import read

    examples = read(DATA / "intents")
    names = list(examples.of)
    made = np.stack([vector(examples.of[name][place]) for name in names for place in range(10)])
    learned = classifier.fit(names, made, np.repeat(np.arange(len(names)), 10))
    rows = {}
    for length, words in LENGTHS.items():
        texts = [f"{number} " + "word " * words for number in range(TIMES)]
        began = time.process_time()
        took = [timed(partial(lambda text: learned.of(vector(text)), text)) for text in texts]
        rows[length] = quantiles(took) | {"CPU, mean": round((time.process_time() - began) / TIMES * 1e6, 1)}
    ready = vector("ready")
    rows["of these, the classifier"] = quantiles([timed(lambda: learned.of(ready)) for _ in range(TIMES)])
    return rows


async def requests(vector: Callable[[str], np.ndarray]) -> dict[str, object]:
    """As a request waits for them: one after the other, from the cache, and under load."""
    from services.router.intents import stored
    from services.router.intents.examples import read
    from services.router.intents.intents import Intents
    from services.router.intents.training import train

    examples = read(DATA / "intents")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "intents.npz"
        stored.write(file, stored.Stored(train(examples, vector).classifier, examples.sha256))
        results: list[str] = []
        intents = Intents(file, results.append)
        while results[-1:] != ["told"]:  # until it is loaded
            await intents.of(f"Write a function, {len(results)}")
            await asyncio.sleep(0.1)
        texts = [text for each in examples.of.values() for text in each]
        rows: dict[str, object] = {}
        for name in ("alone", "cached"):
            took = []
            for text in texts:
                before = time.perf_counter()
                await intents.of(text)
                took.append(time.perf_counter() - before)
            rows[name] = quantiles(took)
        for rate in RATES:
            results.clear()
            await offered(intents.of, texts, rate)
            rows[f"{rate} new texts a second, results"] = {each: results.count(each) for each in sorted(set(results))}
        await intents.close()
    return rows


async def offered(of: Callable[[str], Awaitable[str]], texts: Sequence[str], rate: float) -> None:
    """New texts, each sent when its time comes, whatever became of those before it."""
    chance = random.Random(7)
    async with asyncio.TaskGroup() as asked:
        end = time.perf_counter() + OFFERED_S
        number = 0
        while time.perf_counter() < end:
            number += 1
            asked.create_task(ask(of, f"{rate}.{number} {chance.choice(texts)}"))
            await asyncio.sleep(chance.expovariate(rate))


async def ask(of: Callable[[str], Awaitable[str]], text: str) -> None:
    """One request."""
    await of(text)


def timed(work: Callable[[], object]) -> float:
    """In seconds."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In microseconds."""
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(ordered) * 1e6, 1),
        "p99": round(ordered[int(len(ordered) * 0.99)] * 1e6, 1),
    }


def share(holds: object) -> float:
    """Of the cases that hold."""
    cases = [bool(each) for each in holds]  # type: ignore[attr-defined]
    return sum(cases) / len(cases)


def columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Rows turned."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def show(result: dict[str, object]) -> None:
    """Prints it."""
    console = Console()
    console.print_json(json.dumps(result))
    table = Table("", *next(iter(result["quality"]["mean and least"].values())))  # type: ignore[index]
    for way, row in result["quality"]["mean and least"].items():  # type: ignore[index]
        table.add_row(way, *(f"{mean:.1%} ({least:.1%})" for mean, least in row.values()))
    console.print(table)


if __name__ == "__main__":
    main()
