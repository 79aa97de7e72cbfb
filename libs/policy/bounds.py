"""What holds for any message of a policy, whatever it says; and forms that several kinds have in common. No effects.

Files go through a parser that refuses what is no number, or no value of an enum; over the wire such values arrive.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from math import isfinite

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from libs.catalogue.rules import NAME, Fault, nearest

MOST_ENTRIES = 1000
"""Of any list or map."""
MOST_BYTES = 256 * 1024
"""Of one object; three times as many, as JSON, are well below the 1.5 MiB that etcd takes."""
MOST_BYTES_IN_ALL = 1024 * 1024
"""Of the largest objects of one kind that come in one answer. As JSON they are up to three times as long, and who
follows a kind reads it so: gRPC takes 4 MiB."""
IN_ONE_ANSWER = 500
"""Keys (libs.registry.client.PAGE)."""
MOST_CHARACTERS = 2048
"""Of a text that is no schema, key set or description."""
TAG_KEY = re.compile(r"[a-z0-9_.-]{1,63}")
"""As requests may have them."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
FORM = "a-z, 0-9, '.', '_', '-', not '.', '_' or '-' first; at most 63"


def sound(message: Message, path: str = "") -> Iterator[Fault]:
    """Numbers that are none, values that an enum does not have, lists without end, negative durations."""
    if not path and (size := message.ByteSize()) > MOST_BYTES:
        yield Fault("", f"{size} bytes: at most {MOST_BYTES}")
    for field, value in message.ListFields():
        where = f"{path}{field.name}"
        if not field.is_repeated:
            yield from _value(field, value, where)
        elif len(value) > MOST_ENTRIES:
            yield Fault(where, f"{len(value)} entries: at most {MOST_ENTRIES}")
        elif not _is_map(field):
            for index, item in enumerate(value):
                yield from _value(field, item, f"{where}[{index}]")


def _value(field: FieldDescriptor, value: object, path: str) -> Iterator[Fault]:
    if isinstance(value, Duration):
        if value.seconds < 0 or not 0 <= value.nanos < 1_000_000_000:
            yield Fault(path, "not a duration: 0s or more, with 0 to 999,999,999 ns")
    elif isinstance(value, Message):
        yield from sound(value, path + ".")
    elif isinstance(value, float) and not isfinite(value):
        yield Fault(path, f"{value:g} is not a finite number")
    elif field.enum_type is not None and value not in field.enum_type.values_by_number:
        yield Fault(path, f"{value} is not a value of {field.enum_type.name}")


def in_all(objects: Mapping[str, Message]) -> Iterator[tuple[str, Fault]]:
    """(key, fault): the largest object of a kind of which all together are too large.

    Args:
        objects: By key in etcd; the last segment is the name.
    """
    kinds: dict[str, list[tuple[int, str]]] = {}
    for key, message in objects.items():
        kinds.setdefault(key.rpartition("/")[0], []).append((message.ByteSize(), key))
    for prefix, sizes in kinds.items():
        sizes.sort(reverse=True)
        total = sum(size for size, _ in sizes[:IN_ONE_ANSWER])
        if total > MOST_BYTES_IN_ALL:
            folder = prefix.rpartition("/")[2]
            said = f"the largest {folder} have {total} bytes together, this one most: at most {MOST_BYTES_IN_ALL}"
            yield sizes[0][1], Fault("", said)


def name(text: str, path: str = "name") -> Iterator[Fault]:
    """Of an object, a rule, a rung."""
    if not text:
        yield Fault(path, "required")
    elif not NAME.fullmatch(text):
        yield Fault(path, f"{shown(text)} is not a name: {FORM}")


def text(value: str, path: str, *, required: bool = True, most: int = MOST_CHARACTERS) -> Iterator[Fault]:
    """Readable, and not without end."""
    if required and not value.strip():
        yield Fault(path, "required")
    elif len(value) > most:
        yield Fault(path, f"{len(value)} characters: at most {most}")
    elif _CONTROL.search(value):
        yield Fault(path, "it has control characters: remove them")


def duration(value: Duration, there: bool, path: str, most_s: float) -> Iterator[Fault]:
    """More than nothing, where it is set at all."""
    seconds = value.seconds + value.nanos / 1e9
    if there and not 0 < seconds <= most_s:
        yield Fault(path, f"{seconds:g}s: more than 0s, at most {most_s:g}s")


def share(value: float, path: str, of: str) -> Iterator[Fault]:
    """From 0 to 1."""
    if not 0 <= value <= 1:
        yield Fault(path, f"{value:g}: a share of {of}, from 0 to 1")


def at_most(value: int, path: str, most: int) -> Iterator[Fault]:
    """A count that must not be without end."""
    if value > most:
        yield Fault(path, f"{value}: at most {most}")


def among(values: Collection[str], known: Collection[str], path: str) -> Iterator[Fault]:
    """Each one of the known words, and each once."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        where = f"{path}[{index}]"
        if value in seen:
            yield Fault(where, f"{shown(value)} is named twice")
        elif value not in known:
            yield Fault(where, f"{shown(value)} is not one of {', '.join(known)}{nearest(value[:80], known)}")
        seen.add(value)


def once(values: Collection[str], path: str) -> Iterator[Fault]:
    """None of them empty, and each once."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if not value:
            yield Fault(f"{path}[{index}]", "empty")
        elif value in seen:
            yield Fault(f"{path}[{index}]", f"{shown(value)} is named twice")
        seen.add(value)


def shown(value: str) -> str:
    """Quoted, and cut where it is long."""
    return repr(value if len(value) <= 80 else value[:79] + "…")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
