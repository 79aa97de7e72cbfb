"""The rules and models of a mesh as files, for people to read, review and keep in version control.

A policy is a folder with a folder for each kind of rule (libs/policy/kinds.py): `tenants/`, `tiers/`, `routes/`…;
each YAML file in them is one object, in the JSON form of its message (policy.proto, registry.proto), and bears its
name. Kill switches are not files: they are set in a hurry, and outlive a change of the policy.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue.rules import NAME, Fault
from libs.policy import rules
from libs.policy.kinds import KINDS, Kind
from services.console import documents
from services.console.documents import MOST_BYTES, Document, LineFault, NotYaml

SUFFIXES = (".yaml", ".yml", ".json")
DEVELOPMENT_KEY = "headrace-dev-key"
"""The key that everybody knows; a policy for laptops has a tenant with it."""


class PolicyInvalid(ValueError):
    """The policy is wrong; `faults` has a line for each fault, with the file's name and line in front."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything in the folder, by key in etcd."""

    objects: Mapping[str, Message]
    remarks: Sequence[str] = ()
    """What is valid and does nothing as things are: lines like those of faults."""

    @property
    def models(self) -> list[registry_pb2.Model]:
        """The catalogue, by name."""
        found = [message for message in self.objects.values() if isinstance(message, registry_pb2.Model)]
        return sorted(found, key=lambda model: model.name)

    def accepts(self, key: str) -> bool:
        """Whether some tenant has this API key."""
        digest = key_sha256(key)
        return any(
            digest in message.key_sha256 for message in self.objects.values() if isinstance(message, policy_pb2.Tenant)
        )


def key_sha256(key: str) -> str:
    """What the policy holds of an API key: they are long and random, so one round is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


PREFIXES = tuple(kind.prefix for kind in KINDS.values())
"""Where in etcd a policy rules alone; what is named in front of what names it."""


def load(folder: Path) -> Policy:
    """Reads a policy. Raises PolicyInvalid with every fault of every file."""
    faults: list[str] = []
    objects: dict[str, Message] = {}
    files: dict[str, tuple[str, Document]] = {}
    if not folder.is_dir():
        raise PolicyInvalid([f"{folder}: no such folder"])
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        label = str(path.relative_to(folder))
        kind = KINDS.get(path.parent.name) if path.parent.parent == folder else None
        if kind is None:
            if path.suffix in SUFFIXES:
                faults.append(f"{label}: policies lie in {', '.join(f'{name}/' for name in KINDS)}")
            continue
        if path.suffix not in SUFFIXES:
            faults.append(f"{label}: its name does not end in {', '.join(SUFFIXES)}")
            continue
        document, found = _read(path, kind)
        faults += (located(label, fault) for fault in found)
        if document is None:
            continue
        key = kind.key(path.stem)
        if key in objects:
            faults.append(f"{label}: {files[key][0]} is the same object")
        objects[key], files[key] = document.message, (label, document)
    faults += (_in_file(*files[key], fault) for key, fault in rules.across(objects))
    if faults:
        raise PolicyInvalid(faults)
    return Policy(objects, [_in_file(*files[key], fault) for key, fault in rules.warnings(objects)])


def _in_file(label: str, document: Document, fault: Fault) -> str:
    return located(label, LineFault(document.line_of(fault.path), fault.path, fault.text))


def located(label: str, fault: LineFault) -> str:
    """A fault with where it is: "models/a.yaml:3: slots: must be more than 0"."""
    return f"{label}:{fault.line}: {fault}" if fault.line else f"{label}: {fault}"


def _read(path: Path, kind: Kind) -> tuple[Document | None, list[LineFault]]:
    """The object of a file, None if it is too broken to be compared with others; and its faults."""
    if not NAME.fullmatch(path.stem):
        return None, [LineFault(0, "", f"{path.stem!r} is not a name: up to 63 of a-z, 0-9, '.', '_' and '-'")]
    try:
        if path.stat().st_size > MOST_BYTES:
            return None, [LineFault(0, "", f"longer than {MOST_BYTES} bytes")]
        found = documents.read(path.read_text(encoding="utf-8"), kind.message)
    except NotYaml as error:
        return None, [LineFault(error.line, "", str(error))]
    except UnicodeDecodeError as error:
        return None, [LineFault(0, "", f"not YAML: {error}")]
    if len(found) != 1:
        return None, [LineFault(0, "", f"{len(found)} objects; in a policy each file is one")]
    document = found[0]
    return document, [*document.faults, *_broken_rules(document, kind, path.stem)]


def _broken_rules(document: Document, kind: Kind, stem: str) -> list[LineFault]:
    """What is wrong beyond the types; of a field that could not be read nothing more is said."""
    unread = {fault.path for fault in document.faults}
    if "" in unread:
        return []
    faults = [fault for fault in rules.within(document.message) if not documents.covers(unread, fault.path)]
    name = kind.name(document.message)
    if name != stem and not documents.covers(unread, kind.name_field):
        faults.insert(0, Fault(kind.name_field, f"it describes {name!r}; file and object have the same name"))
    return [LineFault(document.line_of(fault.path), fault.path, fault.text) for fault in faults]
