"""Examples of intents, as an operator writes them: a folder with a text file for each, an example a line."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.router.intents.background import BACKGROUND

NONE = "none"
"""The file with examples of texts that have no intent; without it BACKGROUND counts."""
LEAST = 10
"""Examples of an intent."""
MOST_INTENTS = 64
MOST_EXAMPLES = 10_000
"""Over all intents: a minute of training."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


class ExamplesInvalid(Exception):
    """A folder of examples is not one; `faults` has a line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Examples:
    """What is learned from."""

    of: Mapping[str, Sequence[str]]
    """By intent, in the order of their names."""
    none: Sequence[str]

    @property
    def sha256(self) -> str:
        """Of all of them: tells what a classifier was trained on."""
        lines = (f"{intent}\t{text}\n" for intent, texts in [*self.of.items(), ("", self.none)] for text in texts)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(folder: Path) -> Examples:
    """Reads NAME.txt of each intent; empty lines and those that begin with # do not count. Raises ExamplesInvalid."""
    faults: list[str] = []
    try:
        found = {path.stem: _lines(path) for path in sorted(folder.iterdir()) if path.suffix == ".txt"}
    except (OSError, UnicodeDecodeError) as error:
        raise ExamplesInvalid([f"{folder} cannot be read: {error}"]) from None
    none = found.pop(NONE, BACKGROUND)
    if not found:
        faults.append(f"{folder}: no intent: write the examples of each to INTENT.txt, one a line")
    if len(found) > MOST_INTENTS:
        faults.append(f"{len(found)} intents: at most {MOST_INTENTS}")
    if (count := sum(map(len, found.values())) + len(none)) > MOST_EXAMPLES:
        faults.append(f"{count} examples: at most {MOST_EXAMPLES}")
    owner: dict[str, str] = {}
    for intent, texts in [*found.items(), (NONE, none)]:
        if not _NAME.fullmatch(intent):
            faults.append(f"{intent}.txt: the name of an intent is 1 to 63 characters of a-z 0-9 _ . -")
        if len(texts) < LEAST:
            faults.append(f"{intent}.txt: {len(texts)} examples, at least {LEAST} are needed, better 40")
        twice = [text for text in texts if owner.setdefault(text, intent) != intent]
        faults += [f"{intent}.txt: {text[:60]!r} is an example of {owner[text]} as well" for text in twice]
    if faults:
        raise ExamplesInvalid(faults)
    return Examples(found, tuple(none))


def _lines(path: Path) -> Sequence[str]:
    """Each once."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
