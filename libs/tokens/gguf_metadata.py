"""The metadata of a GGUF file, read in one pass.

The `gguf` package's reader makes a numpy view of every string and takes two seconds for a vocabulary of
49,000 tokens; this takes a tenth. Source of the format: the GGUF specification of the
ggml project, versions 2 and 3.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct codes of the value types that have a fixed size; all little-endian."""
LENGTH = struct.Struct("<Q")
TYPE = struct.Struct("<I")
ARRAY_HEAD = struct.Struct("<IQ")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The key-value pairs of a GGUF file; arrays are lists. Tensors are not touched.

    Raises FileNotFoundError, and ValueError when the file is not little-endian GGUF or ends too early.
    """
    with Path(path).open("rb") as file:
        head = file.read(8)
        if head[:4] != MAGIC or len(head) < 8:
            raise ValueError(f"{path} is not a GGUF file")
        version = TYPE.unpack(head[4:])[0]
        if version not in VERSIONS:
            raise ValueError(f"{path} is GGUF version {version} or big-endian; versions 2 and 3 can be read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _pairs(data)
            except (struct.error, KeyError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is cut off or broken: {error}") from error


def _pairs(data: mmap.mmap) -> dict[str, Any]:
    position = 16  # behind magic, version and the number of tensors
    (count,) = LENGTH.unpack_from(data, position)
    position += 8
    pairs = {}
    for _ in range(count):
        key, position = _string(data, position)
        (kind,) = TYPE.unpack_from(data, position)
        pairs[key], position = _value(data, position + 4, kind)
    return pairs


def _value(data: mmap.mmap, position: int, kind: int) -> tuple[Any, int]:
    if kind == STRING:
        return _string(data, position)
    if kind == ARRAY:
        item, count = ARRAY_HEAD.unpack_from(data, position)
        return _array(data, position + ARRAY_HEAD.size, item, count)
    code = struct.Struct("<" + SCALARS[kind])
    return code.unpack_from(data, position)[0], position + code.size


def _array(data: mmap.mmap, position: int, kind: int, count: int) -> tuple[list[Any], int]:
    if count > len(data):  # before anything of that size is made
        raise struct.error(f"an array of {count} items")
    if kind in SCALARS:
        code = struct.Struct(f"<{count}{SCALARS[kind]}")
        return list(code.unpack_from(data, position)), position + code.size
    items = []
    for _ in range(count):
        item, position = _value(data, position, kind)
        items.append(item)
    return items, position


def _string(data: mmap.mmap, position: int) -> tuple[str, int]:
    start = position + 8
    end = start + LENGTH.unpack_from(data, position)[0]
    if end > len(data):
        raise struct.error(f"a string up to byte {end}")
    return data[start:end].decode(), end
