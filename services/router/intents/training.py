"""Trains a classifier on examples, and says how good it will be: on examples that it has not seen. Pure but for what
makes the vectors."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.router.intents import classifier
from services.router.intents.classifier import Classifier, Labels, Matrix
from services.router.intents.examples import Examples

HELD_BACK = 5
"""One of so many examples of each intent is held back."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of a classifier that was trained on four fifths of the examples, on the last fifth."""

    held_back: Mapping[str, int]
    """Examples by intent; "" for those without one."""
    right: Mapping[str, int]
    """Of these, told rightly."""
    confusions: Sequence[tuple[str, str, str]]
    """What was told wrongly: text, intent, what was said."""
    apart: float
    """Share of the examples with an intent whose most probable intent is right, threshold or not."""

    @property
    def accuracy(self) -> float:
        """Share of the examples with an intent that were told rightly; "" counts as wrong."""
        return self._share(set(self.held_back) - {""})

    @property
    def rejected(self) -> float:
        """Share of the examples without an intent that got none."""
        return self._share({""})

    def _share(self, intents: set[str]) -> float:
        total = sum(self.held_back[intent] for intent in intents)
        return sum(self.right[intent] for intent in intents) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Trained:
    """The classifier, trained on all examples, and the quality of one trained on four fifths of them."""

    classifier: Classifier
    quality: Quality


def train(
    examples: Examples, vector: Callable[[str], Matrix], seen: Callable[[int], None] = lambda count: None
) -> Trained:
    """Trains. `seen` is called with the number of examples that have been made vectors of."""
    intents = tuple(examples.of)
    texts = [text for intent in intents for text in examples.of[intent]] + list(examples.none)
    sizes = [len(examples.of[intent]) for intent in intents] + [len(examples.none)]
    labels: Labels = np.repeat(np.arange(len(sizes)), sizes)
    vectors = []
    for count, text in enumerate(texts, 1):
        vectors.append(vector(text))
        seen(count)
    matrix = np.stack(vectors)
    return Trained(classifier.fit(intents, matrix, labels), _quality(intents, texts, matrix, labels))


def _quality(intents: Sequence[str], texts: Sequence[str], vectors: Matrix, labels: Labels) -> Quality:
    held = classifier.stratified(labels, HELD_BACK) == 0
    learned = classifier.fit(intents, vectors[~held], labels[~held])
    names = [*intents, ""]
    right: Counter[str] = Counter(dict.fromkeys(names, 0))
    confusions = []
    for place in np.flatnonzero(held).tolist():
        wanted, said = names[labels[place]], learned.of(vectors[place])[0]
        right[wanted] += said == wanted
        if said != wanted:
            confusions.append((texts[place], wanted, said))
    known = held & (labels < len(intents))
    best = learned.probabilities(vectors[known])[:, :-1].argmax(axis=1)
    counts = Counter(names[label] for label in labels[held])
    return Quality(counts, right, confusions, float((best == labels[known]).mean()))
