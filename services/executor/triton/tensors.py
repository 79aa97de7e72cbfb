"""Tensors as Triton's gRPC API carries them: type, shape and raw little-endian bytes. Pure."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

FORMATS = {"INT32": "i", "UINT64": "Q", "FP32": "f", "BOOL": "?"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def numbers(self) -> Sequence[int] | Sequence[float]:
        """All values, flat. Raises ValueError for a type that is not in FORMATS, or too few bytes."""
        if self.datatype not in FORMATS:
            raise ValueError(f"{self.name} has type {self.datatype}")
        code = FORMATS[self.datatype]
        try:
            return struct.unpack(f"<{len(self.data) // struct.calcsize(code)}{code}", self.data)
        except struct.error as error:
            raise ValueError(f"{self.name} has {len(self.data)} bytes of {self.datatype}") from error

    @property
    def strings(self) -> list[bytes]:
        """All values of a BYTES tensor: each is its length in four bytes, and its bytes. Raises ValueError."""
        found, at = [], 0
        while at < len(self.data):
            if at + 4 > len(self.data):
                raise ValueError(f"{self.name} ends in the middle of a length")
            (length,) = struct.unpack_from("<I", self.data, at)
            found.append(self.data[at + 4 : at + 4 + length])
            at += 4 + length
        return found


def numbers(name: str, datatype: str, values: Sequence[int] | Sequence[float], shape: tuple[int, ...] = ()) -> Tensor:
    """A tensor of numbers, of one dimension unless `shape` says otherwise.

    Raises ValueError for a value that the type does not hold.
    """
    try:
        data = struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error
    return Tensor(name, datatype, shape or (len(values),), data)


def string(name: str, value: str) -> Tensor:
    """A tensor of one text."""
    data = value.encode()
    return Tensor(name, "BYTES", (1,), struct.pack("<I", len(data)) + data)
