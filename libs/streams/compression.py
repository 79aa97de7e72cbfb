"""Messages that a client has compressed: gRPC's two kinds."""

import zlib

import grpc

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Incompressible(ValueError):
    """A message that cannot be read; `code` is what its call ends with."""

    def __init__(self, code: grpc.StatusCode, said: str) -> None:
        super().__init__(said)
        self.code = code


def inflate(data: bytes, encoding: str, most: int) -> bytes:
    """The message, of at most `most` bytes: a few bytes may stand for gigabytes.

    Raises Incompressible: UNIMPLEMENTED for another encoding, RESOURCE_EXHAUSTED for a message that is too long,
    INTERNAL (gRPC's own answer) for bytes that are not what they are called.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        known = ", ".join(sorted(_WINDOW_BITS))
        raise Incompressible(grpc.StatusCode.UNIMPLEMENTED, f"compressed with {encoding!r}; this server reads {known}")
    reader = zlib.decompressobj(bits)
    try:
        message = reader.decompress(data, most + 1)
    except zlib.error as error:
        raise Incompressible(grpc.StatusCode.INTERNAL, f"a message is not {encoding}: {error}") from error
    if len(message) > most:
        raise Incompressible(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message is longer than {most} bytes")
    if not reader.eof:
        raise Incompressible(grpc.StatusCode.INTERNAL, f"a message is not whole {encoding}")
    return message
