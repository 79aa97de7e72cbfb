"""Messages made wrong, field by field, by their descriptors; and bytes that are no messages any more. All from a seed.

Nothing here knows an RPC: a new field, or a new message, is mutated like the others.
"""

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.message import Message

INTEGERS = {
    F.CPPTYPE_INT32: (0, 1, -1, 2, 7, 100, 1001, 2**31 - 1, -(2**31), 2**31 - 2, 65536),
    F.CPPTYPE_INT64: (0, 1, -1, 2, 100, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 253402300800, -62135596801),
    F.CPPTYPE_UINT32: (0, 1, 2, 7, 100, 65535, 2**31 - 1, 2**31, 2**32 - 1),
    F.CPPTYPE_UINT64: (0, 1, 2, 100, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1),
    F.CPPTYPE_ENUM: (0, 1, 2, 3, 4, 5, 9, 100, -1, 2**31 - 1, -(2**31)),
}
REALS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 5e-324, 1e38, -1e38, 1e300, float("nan"), float("inf"), float("-inf"), 1e15,
)  # fmt: skip
WORDS = (
    "", " ", "a", "fuzz", "simulated", "default", "dev", "reader", "interactive", "async", "model", "tenant", "feature",
    "tenants", "routes", "contracts", "1", "0", "-1", "9" * 19, "9" * 400, "9" * 5000, "1/admission-1/1",
    f"{'9' * 400}/a/1", "-1/a/-1", "//", "..", "../../etc/passwd", "/", "a/b", "a@b", "fuzz@0", "a" * 63, "a" * 64,
    "A", "a b", "a\x00b", "\x00", "\n", "\r\n", "\x1b[31m", "a\u202eb", "\ufeff", "\ud7ff", "\uffff", "é", "ｄｅｖ",
    "𝒹ℯ𝓋", "İ", "ß" * 300, "🦀" * 64, "e\u0301" * 200, "%s%n%d", "{0.__class__}", "{{7*7}}",
    "'; drop table", "<script>",
    "$(id)",
    "None", "null", "true", "NaN", "{}", "[]", '{"type": "object"}', '{"type": 7}', '{"$ref": "#"}',
    '{"$ref": "http://127.0.0.1:1/x"}', '{"enum": []}', "[" * 5000, '{"a":' * 2000, '{"pattern": "(("}', "(a+)+$",
    "((((", "[a-z", "(?P<x>a)(?P<x>b)", "a{1000000}", "(?:a{1000}){1000}", "root ::= root", "http://127.0.0.1:1/",
    "https://[::1",
    "file:///etc/passwd", "1e999", "2.5.5.5",
)  # fmt: skip
LONG = (1_000, 30_000, 200_000)
"""Characters of a long text, now and then."""
MANY = 1_000
"""Elements of a long list."""
SMALL = 500
"""Bytes of what is repeated so often: what is too large to be sent tests nothing but gRPC."""
DEEP = 12_000
"""Levels of what is nested too deeply to be read."""

_STRINGS, _MESSAGE, _BOOL = F.CPPTYPE_STRING, F.CPPTYPE_MESSAGE, F.CPPTYPE_BOOL


def mutate(message: Message, chance: Random) -> None:
    """Changes one field, somewhere in the message or in what it holds."""
    fields: Sequence[F] = message.DESCRIPTOR.fields  # type: ignore[assignment]
    if not fields:
        return
    # What is there already is looked at more often: its neighbors are valid.
    present: Sequence[F] = [field for field, _ in message.ListFields()]
    field: F = chance.choice(present if present and chance.random() < 0.6 else fields)
    if _is_map(field):
        _mutate_map(message, field, chance)
    elif field.is_repeated:
        _mutate_repeated(message, field, chance)
    elif field.cpp_type != _MESSAGE:
        if chance.random() < 0.1:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, scalar(field, chance))
    elif chance.random() < 0.1:
        message.ClearField(field.name)
    else:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _mutate_inner(inner, chance)


def _mutate_inner(inner: Message, chance: Random) -> None:
    name = inner.DESCRIPTOR.full_name
    if name == "google.protobuf.Struct":
        _struct(inner, chance)
    elif name in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
        whole: Any = inner
        whole.seconds = chance.choice(INTEGERS[F.CPPTYPE_INT64])
        whole.nanos = chance.choice((0, 0, 1, -1, 999_999_999, 1_000_000_000, -999_999_999, 2**31 - 1, -(2**31)))
    else:
        mutate(inner, chance)


def scalar(field: F, chance: Random) -> Any:
    """A value that the field's type can hold and hardly anybody expects."""
    kind = field.cpp_type
    if kind == _STRINGS:
        return text(chance) if field.type == F.TYPE_STRING else text(chance).encode()
    if kind == _BOOL:
        return chance.random() < 0.5
    if kind in INTEGERS:
        values = INTEGERS[kind]
        if field.enum_type is not None and chance.random() < 0.5:
            values = tuple(value.number for value in field.enum_type.values)
        return chance.choice(values)
    value = chance.choice(REALS)
    if kind == F.CPPTYPE_FLOAT and abs(value) == 1e300:
        return 3.4e38
    return value


def text(chance: Random) -> str:
    """A word from the list, two of them, something long, or characters by chance."""
    throw = chance.random()
    if throw < 0.7:
        return chance.choice(WORDS)
    if throw < 0.8:
        return chance.choice(WORDS) + chance.choice(WORDS)
    if throw < 0.85:
        return (chance.choice(WORDS) or "x")[:20].ljust(1, "x") * (chance.choice(LONG) // 20)
    points = [chance.choice((chance.randrange(128), chance.randrange(0xD800), 0x1F600)) for _ in range(12)]
    return "".join(map(chr, points))


def _mutate_repeated(message: Message, field: F, chance: Random) -> None:
    held, throw = getattr(message, field.name), chance.random()
    if throw < 0.1:
        message.ClearField(field.name)
    elif field.cpp_type == _MESSAGE:
        if throw < 0.6 and held:
            _mutate_inner(chance.choice(held), chance)
            return
        made = held.add()
        if throw > 0.8 and len(held) > 1:
            made.CopyFrom(held[0])
        else:
            _mutate_inner(made, chance)
        if throw > 0.96 and made.ByteSize() < SMALL:
            held.extend([made] * MANY)
    elif throw > 0.95:
        value = scalar(field, chance)
        held.extend([value[:SMALL] if isinstance(value, str | bytes) else value] * MANY)
    else:
        held.append(scalar(field, chance))


def _mutate_map(message: Message, field: F, chance: Random) -> None:
    held, entry = getattr(message, field.name), _entry(field)
    for number in range(MANY if chance.random() < 0.1 and message.ByteSize() < SMALL else 1):
        key = scalar(entry["key"], chance)
        key = f"{key[:8]}{number}" if number and isinstance(key, str) else key
        if entry["value"].cpp_type == _MESSAGE:
            mutate(held[key], chance)
        else:
            held[key] = scalar(entry["value"], chance)


def _struct(inner: Any, chance: Random) -> None:
    """JSON with numbers that JSON does not have, or nested as deep as a message may be."""
    inner[text(chance)[:80]] = chance.choice((float("nan"), float("inf"), 1e308, -0.0, "\x00", True, None))
    for _ in range(chance.choice((0, 0, 3, 30))):
        nested = type(inner)()
        nested[text(chance)[:20]] = inner
        if nested.ByteSize() < 100_000:
            inner.CopyFrom(nested)


def _entry(field: F) -> Any:
    """The fields "key" and "value" of a map."""
    assert field.message_type is not None
    return field.message_type.fields_by_name


def _is_map(field: F) -> bool:
    kind = field.message_type
    return bool(field.is_repeated and kind is not None and kind.GetOptions().map_entry)


# --- bytes ----------------------------------------------------------------------------------------------


def spoil(data: bytes, chance: Random) -> bytes:
    """Bytes that were a message."""
    return chance.choice(_SPOILERS)(data, chance)


def _truncated(data: bytes, chance: Random) -> bytes:
    return data[: chance.randrange(len(data))] if data else b"\x0a"


def _flipped(data: bytes, chance: Random) -> bytes:
    spoiled = bytearray(data or b"\x00")
    for _ in range(chance.choice((1, 2, 8))):
        spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


def _inserted(data: bytes, chance: Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 3, 40))) + data[at:]


def _twice(data: bytes, _: Random) -> bytes:
    """Lists are twice as long; of a oneof the last member counts."""
    return data + data


def _unknown(data: bytes, chance: Random) -> bytes:
    """Fields that no version of the message has, of every wire type."""
    number = chance.choice((999, 19_000, 2**29 - 1))
    tails = (b"\x01", struct.pack("<q", -1), b"\x03abc", b"", b"", struct.pack("<f", 1.0))
    kind = chance.choice((0, 1, 2, 3, 4, 5, 6, 7))
    return data + _varint(number << 3 | kind) + (tails[kind] if kind < len(tails) else b"\x00")


def _not_utf8(data: bytes, chance: Random) -> bytes:
    spoiled = bytearray(data)
    letters = [index for index, byte in enumerate(data) if 97 <= byte <= 122]
    if letters:
        spoiled[chance.choice(letters)] = chance.choice((0xFF, 0xC0, 0xED))
    return bytes(spoiled)


def _too_long(data: bytes, chance: Random) -> bytes:
    """A length beyond the end, or beyond what there is in the world."""
    return data + b"\x0a" + _varint(chance.choice((10, 2**31, 2**32, 2**63)))


def _too_wide(data: bytes, _: Random) -> bytes:
    """An integer of eleven bytes, field number 0."""
    return data + b"\x08" + b"\xff" * 11 + b"\x00"


def _too_deep(data: bytes, chance: Random) -> bytes:
    """Groups in groups, or messages in messages of one field."""
    if chance.random() < 0.5:
        return data + b"\x0b" * DEEP + b"\x0c" * DEEP
    inner, tag = b"", chance.choice((b"\x0a", b"\x12", b"\x1a", b"\x22"))
    for _ in range(300):
        inner = tag + _varint(len(inner)) + inner
    return data + inner


def _noise(_: bytes, chance: Random) -> bytes:
    return chance.randbytes(chance.choice((1, 16, 500)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SPOILERS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _truncated, _flipped, _flipped, _inserted, _twice, _unknown, _not_utf8, _too_long, _too_wide, _too_deep, _noise,
)  # fmt: skip
