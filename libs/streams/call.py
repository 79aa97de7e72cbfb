"""What is said of a gRPC call around its messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import grpc

KEEPALIVE_S = 5
"""Both ends ping after this much silence and give a connection up after as much again: so a frozen or
cut-off neighbour is noticed in 10 s at most."""
MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest message, gRPC's own default: whoever has more to say says it in several messages."""
Headers = Mapping[str, str]
"""What came in front of a call's messages; a name that came again has a comma between its values."""
Metadata = Sequence[tuple[str, str | bytes]]
"""Names in lower case; those that end in "-bin" have bytes."""
NO_HEADERS: Headers = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    metadata: Metadata = ()
    """What a server says behind its answer, a google.rpc.Status among it."""

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}" if self.details else self.code.name


OK = Ended(grpc.StatusCode.OK)
CODES = {code.value[0]: code for code in grpc.StatusCode}
"""gRPC's codes by their numbers."""
