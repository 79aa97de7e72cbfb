"""What differs between two entries of the catalogue, field by field. No effects."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf import duration_pb2, json_format, struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from headrace.registry.v1 import registry_pb2

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@+~")


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that differs; values as YAML has them, "" where the field is not set."""

    path: str
    before: str
    after: str


def differences(before: registry_pb2.Model, after: registry_pb2.Model) -> list[Difference]:
    """In the order of the message's fields."""
    old, new = dict(_leaves(before, "")), dict(_leaves(after, ""))
    order = {field.name: index for index, field in enumerate(registry_pb2.Model.DESCRIPTOR.fields)}
    paths = sorted(old.keys() | new.keys(), key=lambda path: (order[path.partition(".")[0]], path))
    return [Difference(path, old.get(path, ""), new.get(path, "")) for path in paths if old.get(path) != new.get(path)]


def _leaves(message: Message, prefix: str) -> Iterator[tuple[str, str]]:
    """Every field that is set, with its value as text."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if _is_map(field):
            yield from ((f"{path}.{key}", _scalar(value[key], None)) for key in sorted(value))
        elif isinstance(value, struct_pb2.Struct):
            held = json_format.MessageToDict(value)
            yield from [(f"{path}.{key}", _scalar(held[key], None)) for key in sorted(held)] or [(path, "{}")]
        elif isinstance(value, duration_pb2.Duration):
            yield path, value.ToJsonString()
        elif field.is_repeated:
            yield path, f"[{', '.join(_scalar(item, field) for item in value)}]"
        elif isinstance(value, Message):
            found = list(_leaves(value, path + "."))
            yield from found or [(path, "{}")]
        else:
            yield path, _scalar(value, field)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _scalar(value: object, field: FieldDescriptor | None) -> str:
    if field is not None and field.enum_type is not None and isinstance(value, int):
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, str) and value and set(value) <= _PLAIN:
        return value
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
