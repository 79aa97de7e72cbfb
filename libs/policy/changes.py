"""What stands against writing rules, or taking one away. No effects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from libs.errors import Violation
from libs.policy import rules, tenant_rules
from libs.policy.kinds import KINDS, OF_MESSAGE, of_key
from libs.policy.references import references, referrers

_NOBODY = "then no tenant would be an operator any more, and nobody could change it back through OperationsService"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that is to be written."""

    path: str
    """Where it stands in the request: "objects[2].tenant"."""
    message: Message


def violations(stored: Mapping[str, Message], wanted: Sequence[Wanted]) -> list[Violation]:
    """Everything that is wrong with the wanted objects, each by itself and among those that would be there.

    What was wrong with the others before does not count.

    Args:
        stored: By key in etcd; models and pins among them.
    """
    found: list[Violation] = []
    positions: dict[str, Wanted] = {}
    for each in wanted:
        faults = list(rules.within(each.message))
        found += (_violation(each, fault.path, fault.text) for fault in faults)
        key = _key(each.message)
        if key and positions.setdefault(key, each) is not each:
            kind = OF_MESSAGE[type(each.message)]
            found.append(_violation(each, kind.name_field, f"{positions[key].path} is the same object"))
    after = {**stored, **{key: each.message for key, each in positions.items()}}
    before = {(key, str(fault)) for key, fault in rules.across(stored)}
    for key, fault in rules.across(after):
        if key in positions:
            found.append(_violation(positions[key], fault.path, fault.text))
        elif (key, str(fault)) not in before:
            found.append(Violation("objects", f"{_called(key)}, which is there, would be wrong: {fault}"))
    if tenant_rules.operators(stored) and not tenant_rules.operators(after):
        found.append(Violation("objects", _NOBODY))
    return found


def why_kept(stored: Mapping[str, Message], folder: str, name: str) -> list[Violation]:
    """What stands against taking an object away."""
    found = [
        Violation("name", f"{_called(key)} names it ({path}): change that first")
        for key, path in referrers(stored, folder, name)
    ]
    key = KINDS[folder].prefix + name
    after = {other: message for other, message in stored.items() if other != key}
    if tenant_rules.operators(stored) and not tenant_rules.operators(after):
        found.append(Violation("name", _NOBODY))
    return found


def relied_on(stored: Mapping[str, Message], messages: Sequence[Message]) -> set[str]:
    """Keys of what is there already and named by the messages: it has to stay while they are written."""
    return {
        key
        for message in messages
        for each in references(message)
        for folder in each.folders
        if (key := KINDS[folder].prefix + each.name) in stored
    }


def _violation(wanted: Wanted, path: str, text: str) -> Violation:
    return Violation(f"{wanted.path}.{path}" if path else wanted.path, text)


def _key(message: Message) -> str:
    """Where it would lie; "" for one whose name can be no segment of a key: that is a fault already."""
    kind = OF_MESSAGE[type(message)]
    try:
        return kind.key(kind.name(message))
    except ValueError:
        return ""


def _called(key: str) -> str:
    kind, name = of_key(key)
    return f"the {kind.noun} {name!r}"
