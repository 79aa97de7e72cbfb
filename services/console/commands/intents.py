"""`headrace intents train` and `headrace intents try`."""

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from services.console.problem import Problem
from services.router.intents import stored, training
from services.router.intents.classifier import Classifier
from services.router.intents.embedder import Embedder, EmbedderMissing
from services.router.intents.examples import ExamplesInvalid, read
from services.router.intents.training import Quality

SHOWN = 12
"""Confusions that are shown in a terminal."""
TIMED = 100
"""Decisions that are timed."""


def train(folder: Path, out: Path, as_json: bool, console: Console) -> None:
    """Trains, writes the file, and shows how good it is. Raises Problem."""
    try:
        examples = read(folder)
    except ExamplesInvalid as invalid:
        raise Problem("the examples cannot be learned from", invalid.faults) from invalid
    embedder = _embedder()
    total = sum(map(len, examples.of.values())) + len(examples.none)
    with Progress(console=console, transient=True, disable=as_json) as progress:
        reading = progress.add_task("reading examples", total=total)
        trained = training.train(examples, embedder.vector, lambda count: progress.update(reading, completed=count))
    try:
        stored.write(out, stored.Stored(trained.classifier, examples.sha256))
    except OSError as error:
        raise Problem(f"{out} cannot be written", [str(error)]) from error
    texts = [text for intent in examples.of.values() for text in intent]
    decision_ms = _time(trained.classifier, embedder, texts[:: max(1, len(texts) // TIMED)])
    quality = trained.quality
    if as_json:
        told = {
            "file": str(out),
            "examples": total,
            "held_back": dict(quality.held_back),
            "accuracy": quality.accuracy,
            "accuracy_without_threshold": quality.apart,
            "rejected": quality.rejected,
            "threshold": trained.classifier.threshold,
            "confusions": quality.confusions,
            "decision_ms": decision_ms,
        }
        console.print_json(json.dumps(told))
        return
    _show(quality, console)
    threshold = trained.classifier.threshold
    said = f"{total} examples; below a probability of {threshold:.2f} there is no intent"
    console.print(f"{said}; one decision takes {decision_ms:.1f} ms")
    console.print(Text.assemble(("✓ ", "green"), f"{out} written: trained on all of them"), soft_wrap=True)


def attempt(text: str, file: Path, as_json: bool, console: Console) -> None:
    """Shows a text's intent. Raises Problem."""
    try:
        classifier = stored.read(file).classifier
    except FileNotFoundError as missing:
        raise Problem(f"{file} is not there", advice="`headrace intents train FOLDER` writes it") from missing
    except (OSError, stored.StoredInvalid) as error:
        raise Problem("the trained intents cannot be used", [str(error)]) from error
    vector = _embedder().vector(text)
    intent, probability = classifier.of(vector)
    probabilities = classifier.probabilities(vector[None])[0].tolist()
    others = sorted(zip([*classifier.intents, ""], probabilities, strict=True), key=lambda each: -each[1])
    if as_json:
        told = {"intent": intent, "probability": probability, "threshold": classifier.threshold, "all": dict(others)}
        console.print_json(json.dumps(told))
        return
    why = f"the threshold is {classifier.threshold:.2f}"
    console.print(Text.assemble((intent or "no intent", "bold"), f"  {probability:.2f}  {why}"))
    for name, share in others:
        console.print(Text(f"  {share:.2f}  {name or 'none of them'}", "bright_black"))


def _embedder() -> Embedder:
    try:
        return Embedder()
    except EmbedderMissing as missing:
        raise Problem("texts cannot be read", [str(missing)]) from missing


def _time(classifier: Classifier, embedder: Embedder, texts: Iterable[str]) -> float:
    """The median of a decision, in milliseconds."""
    took = []
    for text in texts:
        before = time.perf_counter()
        classifier.of(embedder.vector(text))
        took.append(time.perf_counter() - before)
    return statistics.median(took) * 1e3


def _show(quality: Quality, console: Console) -> None:
    console.print("of examples that were held back, trained on the others:")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column("intent", no_wrap=True)
    table.add_column("held back", justify="right")
    table.add_column("right", justify="right")
    for intent, count in quality.held_back.items():
        table.add_row(Text(intent or "none", "" if intent else "bright_black"), str(count), str(quality.right[intent]))
    console.print(table)
    said = f"{quality.accuracy:.1%} right ({quality.apart:.1%} without the threshold)"
    console.print(f"{said}; of those without an intent {quality.rejected:.1%} got none")
    for text, intent, told in quality.confusions[:SHOWN]:
        what = f"{intent or 'none'} → {told or 'none'}"
        console.print(Text.assemble((f"  {what:<24}", "yellow"), text[:100]), soft_wrap=True)
    if len(quality.confusions) > SHOWN:
        console.print(f"  and {len(quality.confusions) - SHOWN} more: `--json` shows all", style="bright_black")
