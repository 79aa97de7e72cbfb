"""A trained classifier as a file: arrays and names, nothing that is run when it is read."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.router.intents.classifier import Classifier
from services.router.intents.embedder import DIMENSIONS, MODEL

MOST_BYTES = 2 * 1024 * 1024
_FORMAT = 1


class StoredInvalid(Exception):
    """A file holds no classifier that can be used here; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds."""

    classifier: Classifier
    examples_sha256: str


def write(path: Path, stored: Stored) -> None:
    """Replaces a file as a whole: a reader sees the old one or the new one. Raises OSError."""
    classifier = stored.classifier
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=np.int64(_FORMAT),
        model=np.str_(MODEL),
        examples_sha256=np.str_(stored.examples_sha256),
        intents=np.array(classifier.intents, np.str_),
        weights=classifier.weights,
        threshold=np.float64(classifier.threshold),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(buffer.getvalue())
    beside.replace(path)


def read(path: Path) -> Stored:
    """Reads a file. Raises OSError, FileNotFoundError among them, and StoredInvalid."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise StoredInvalid(f"{path}: {size} bytes, at most {MOST_BYTES}: train it with fewer intents")
    anew = "train it anew: `headrace intents train`"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            form, model = int(arrays["format"]), str(arrays["model"])
            intents = tuple(str(intent) for intent in arrays["intents"])
            weights = arrays["weights"].astype(np.float32)
            threshold = float(arrays["threshold"])
            sha256 = str(arrays["examples_sha256"])
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise StoredInvalid(f"{path} is not what `headrace intents train` writes ({error}): {anew}") from None
    if (form, model) != (_FORMAT, MODEL):
        raise StoredInvalid(f"{path} was trained on vectors of {model!r}, here they are of {MODEL!r}: {anew}")
    if weights.shape != (DIMENSIONS + 1, len(intents) + 1) or not np.isfinite(weights).all():
        raise StoredInvalid(f"{path}: the weights do not fit its {len(intents)} intents: {anew}")
    return Stored(Classifier(intents, weights, threshold), sha256)
