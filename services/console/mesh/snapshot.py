"""What is told of a running mesh: by its supervisor in STATE/mesh.json, to the other commands. Pure."""

from dataclasses import dataclass
from typing import Literal

import msgspec

Phase = Literal["preparing", "starting", "healthy", "degraded", "stopping", "stopped", "failed"]
State = Literal[
    "waiting", "starting", "healthy", "unhealthy", "draining", "restarting", "stopping", "stopped", "failed"
]


@dataclass(frozen=True, slots=True)
class ComponentSnapshot:
    """One process."""

    name: str
    service: str
    state: State
    port: int
    metrics_ports: tuple[int, ...] = ()
    """One for each of our services in it."""
    pid: int | None = None
    """None while it does not run."""
    started: float | None = None
    """When this run of it was started, Unix seconds; tells it from a later process with the same pid."""
    restarts: int = 0
    """How often it had to be started again: not because somebody had asked it to end."""
    detail: str = ""
    """What a person should know, for example how it ended last."""

    @property
    def metrics_port(self) -> int | None:
        """The first of them."""
        return self.metrics_ports[0] if self.metrics_ports else None


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One model, from its preparation to its readiness."""

    name: str
    state: Literal["waiting", "preparing", "loading", "ready", "asleep", "failed"]
    detail: str = ""
    """The phase of its preparation, where it is ready, or why it failed."""
    fraction: float | None = None
    """Of its preparation, from 0 to 1."""
    executors: tuple[str, ...] = ()
    """Those that answer with it."""


@dataclass(frozen=True, slots=True)
class MeshSnapshot:
    """The whole mesh."""

    supervisor: int
    """Its pid."""
    started: float
    """When the mesh was started, Unix seconds."""
    phase: Phase
    engine: str
    target: str
    """host:port of the clients' door."""
    etcd: str
    """host:port of etcd."""
    state_dir: str
    key: str | None = None
    """A key that the mesh accepts, if its policy has the development key."""
    collector: str = ""
    """Where spans go; empty when they go to STATE/traces."""
    components: tuple[ComponentSnapshot, ...] = ()
    models: tuple[ModelSnapshot, ...] = ()
    failure: str = ""
    """Why the mesh could not be started."""
    failed_component: str = ""
    """Whose log says more."""

    def component(self, name: str) -> ComponentSnapshot:
        """A process by its name. Raises KeyError."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)


def encode(snapshot: MeshSnapshot) -> bytes:
    """As JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=2)


def decode(data: bytes) -> MeshSnapshot:
    """Reads what `encode` wrote. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=MeshSnapshot)
