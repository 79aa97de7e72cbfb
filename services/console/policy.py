"""The rules and models of a mesh as files, for people to read, review and keep in version control.

A policy is a folder with `tenants/`, `tiers/`, `routes/` and `models/`; each YAML file in them is one object,
in the JSON form of its message (policy.proto, registry.proto), and bears its name. Kill switches are not
files: they are set in a hurry, and outlive a change of the policy.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.registry import keys
from services.console import policy_rules

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SUFFIXES = (".yaml", ".yml", ".json")
DEVELOPMENT_KEY = "headrace-dev-key"
"""The key that everybody knows; a policy for laptops has a tenant with it."""
MOST_BYTES = 1024 * 1024
"""etcd takes values of 1.5 MiB."""


class PolicyInvalid(ValueError):
    """The policy is wrong; `faults` has a line for each fault, with the file's name in front."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything in the folder, by key in etcd."""

    objects: Mapping[str, Message]

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


@dataclass(frozen=True, slots=True)
class _Kind:
    """What lies in one of the folders."""

    message: Callable[[], Message]
    name: Callable[[Any], str]
    key: Callable[[str], str]
    prefix: str


_KINDS: Mapping[str, _Kind] = {
    "tenants": _Kind(policy_pb2.Tenant, lambda tenant: tenant.name, keys.tenant, keys.TENANTS),
    "tiers": _Kind(
        policy_pb2.TierPolicy,
        lambda tier: inference_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower(),
        keys.tier,
        keys.TIERS,
    ),
    "routes": _Kind(policy_pb2.Route, lambda route: route.alias, keys.route, keys.ROUTES),
    "models": _Kind(registry_pb2.Model, lambda model: model.name, keys.model, keys.MODELS),
}
PREFIXES = tuple(kind.prefix for kind in _KINDS.values())
"""Where in etcd a policy rules alone."""


def load(folder: Path) -> Policy:
    """Reads a policy. Raises PolicyInvalid with every fault of every file."""
    faults: list[str] = []
    objects: dict[str, Message] = {}
    files: dict[str, str] = {}
    if not folder.is_dir():
        raise PolicyInvalid([f"{folder}: no such folder"])
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        label = str(path.relative_to(folder))
        kind = _KINDS.get(path.parent.name) if path.parent.parent == folder else None
        if kind is None:
            if path.suffix in SUFFIXES:
                faults.append(f"{label}: policies lie in {', '.join(f'{name}/' for name in _KINDS)}")
            continue
        if path.suffix not in SUFFIXES:
            faults.append(f"{label}: its name does not end in {', '.join(SUFFIXES)}")
            continue
        message, found = _read(path, kind)
        faults += (f"{label}: {fault}" for fault in found)
        if message is None:
            continue
        key = kind.key(path.stem)
        if key in objects:
            faults.append(f"{label}: {files[key]} is the same object")
        objects[key], files[key] = message, label
    faults += (f"{files[key]}: {fault}" for key, fault in policy_rules.across(objects))
    if faults:
        raise PolicyInvalid(faults)
    return Policy(objects)


def _read(path: Path, kind: _Kind) -> tuple[Message | None, list[str]]:
    """The object of a file, None if it is too broken to be compared with others; and its faults."""
    if not NAME.fullmatch(path.stem):
        return None, [f"{path.stem!r} is not a name: up to 63 of a-z, 0-9, '.', '_' and '-'"]
    try:
        if path.stat().st_size > MOST_BYTES:
            return None, [f"longer than {MOST_BYTES} bytes"]
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"not YAML: {' '.join(str(error).split())}"]
    if not isinstance(fields, dict):
        return None, ["not a mapping of fields"]
    message = kind.message()
    faults = list(_fill(message, fields))
    if not faults:
        name = kind.name(message)
        if name != path.stem:
            faults.append(f"it describes {name!r}; file and object have the same name")
        faults += policy_rules.within(message)
    return message, faults


def _fill(message: Message, fields: Mapping[object, object]) -> Iterator[str]:
    """Parses field by field, so that one fault does not hide the next."""
    for name, value in fields.items():
        try:
            json_format.ParseDict({str(name): value}, message)
        except json_format.ParseError as error:
            yield " ".join(str(error).split())
