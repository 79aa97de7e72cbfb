"""Where a process of the mesh is reached."""

from dataclasses import dataclass
from typing import Protocol, Self


class Announced(Protocol):
    """A record in etcd that says where a process is."""

    @property
    def endpoint(self) -> str: ...

    @property
    def stream_endpoint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Two ports of one process, host:port each."""

    rpc: str
    """Its gRPC server: single calls, health, reflection."""
    streams: str = ""
    """Its standing streams (libs.streams); empty where it has none."""

    @classmethod
    def of(cls, record: Announced) -> Self:
        """As it announced itself."""
        return cls(record.endpoint, record.stream_endpoint)
