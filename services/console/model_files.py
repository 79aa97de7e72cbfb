"""Entries of the catalogue as files: YAML, one or many documents in each."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.registry.v1 import registry_pb2
from libs.catalogue import rules
from services.console import documents
from services.console.documents import MOST_BYTES, Document, LineFault, NotYaml

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
_OF_REQUEST = re.compile(r"models\[(\d+)\]\.?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, and where it is."""

    label: str
    """The file."""
    document: Document
    many: bool
    """Whether the file has other documents too."""

    @property
    def model(self) -> registry_pb2.Model:
        """As far as it could be read."""
        assert isinstance(self.document.message, registry_pb2.Model)
        return self.document.message

    def fault(self, path: str, text: str) -> "Located":
        """Something that is wrong with it."""
        number = self.document.number if self.many else 0
        return Located(self.label, self.document.line_of(path), number, path, text)


@dataclass(frozen=True, slots=True)
class Located:
    """Something that is wrong, and where: "models.yaml:12: document 2: scaling.min: 3 is more than …"."""

    label: str
    line: int
    """0 where there is none."""
    number: int
    """Of the document; 0 where the file has only one."""
    path: str
    text: str

    def __str__(self) -> str:
        where = f"{self.label}:{self.line}" if self.line else self.label
        document = f"document {self.number}" if self.number else ""
        return ": ".join(filter(None, (where, document, self.path, self.text)))


class FilesInvalid(ValueError):
    """The files cannot be applied; `faults` has all that is wrong, file by file, line by line."""

    def __init__(self, faults: Iterable[Located]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(map(str, self.faults)))


@dataclass(slots=True)
class Files:
    """Everything that was read."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[Located] = field(default_factory=list)
    """Of the reading."""
    labels: list[str] = field(default_factory=list)
    """The files, in the order in which they were read."""

    @property
    def models(self) -> list[registry_pb2.Model]:
        """In the order of the files and their documents."""
        return [entry.model for entry in self.entries]

    def check(self, catalogue: Mapping[str, registry_pb2.Model], *, prune: bool) -> None:
        """Holds the entries to the rules, each by itself and among those of the catalogue that stay.

        Raises FilesInvalid; of a field that could not be read nothing more is said.
        """
        faults = list(self.faults)
        by_name: dict[str, Entry] = {}
        for entry in self.entries:
            unread = {fault.path for fault in entry.document.faults}
            if "" in unread:
                continue
            found = rules.entry(entry.model)
            faults += (entry.fault(f.path, f.text) for f in found if not documents.covers(unread, f.path))
            name = entry.model.name
            if name and (first := by_name.setdefault(name, entry)) is not entry:
                there = f"{first.label}:{first.document.line_of('name')}"
                faults.append(entry.fault("name", f"{name!r} is in {there} too"))
        merged = ({} if prune else dict(catalogue)) | {name: entry.model for name, entry in by_name.items()}
        for name, fault in rules.across(merged):
            if name in by_name:
                faults.append(by_name[name].fault(fault.path, fault.text))
        if faults:
            raise FilesInvalid(sorted(faults, key=lambda fault: (self.labels.index(fault.label), fault.line)))

    def locate(self, subject: str, text: str) -> str:
        """What the mesh says of "models[2].scaling.min", with the place in the files."""
        found = _OF_REQUEST.fullmatch(subject)
        if found is None or int(found[1]) >= len(self.entries):
            return f"{subject}: {text}" if subject else text
        return str(self.entries[int(found[1])].fault(found[2], text))


def load(names: Sequence[str]) -> Files:
    """Reads files, folders (the files right in them) and, for "-", standard input. Raises nothing: see `check`."""
    files = Files()
    for name in names:
        if name == STDIN:
            files.labels.append("stdin")
            _read("stdin", sys.stdin.buffer.read(MOST_BYTES + 1), files)
            continue
        path = Path(name)
        if not path.is_dir():
            _read_file(path, files)
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and not each.name.startswith("."))
        if not inside:
            files.labels.append(name)
            files.faults.append(_whole(name, f"no {', '.join(SUFFIXES)} in this folder"))
        for each in inside:
            _read_file(each, files)
    return files


def _read_file(path: Path, files: Files) -> None:
    files.labels.append(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        files.faults.append(_whole(str(path), error.strerror or str(error)))
        return
    _read(str(path), raw, files)


def _read(label: str, raw: bytes, files: Files) -> None:
    if len(raw) > MOST_BYTES:
        files.faults.append(_whole(label, f"longer than {MOST_BYTES} bytes"))
        return
    try:
        found = documents.read(raw.decode(), registry_pb2.Model)
    except (NotYaml, UnicodeDecodeError) as error:
        line = error.line if isinstance(error, NotYaml) else 0
        files.faults.append(Located(label, line, 0, "", str(error)))
        return
    if not found:
        files.faults.append(_whole(label, "empty: it holds no model"))
    for document in found:
        entry = Entry(label, document, many=len(found) > 1 or document.number > 1)
        files.entries.append(entry)
        files.faults += (_at(entry, fault) for fault in document.faults)


def _at(entry: Entry, fault: LineFault) -> Located:
    return Located(entry.label, fault.line, entry.document.number if entry.many else 0, fault.path, fault.text)


def _whole(label: str, text: str) -> Located:
    return Located(label, 0, 0, "", text)
