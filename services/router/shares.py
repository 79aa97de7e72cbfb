"""A share of the requests, the same ones always. Pure."""

import hashlib


def point(*values: str) -> float:
    """Where these values lie on [0, 1): evenly spread, and the same in every process.

    A value is in a share if its point is below it, so a share that grows keeps whom it has.
    """
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        data = value.encode()
        digest.update(len(data).to_bytes(4, "little") + data)
    return int.from_bytes(digest.digest()) / 2**64
