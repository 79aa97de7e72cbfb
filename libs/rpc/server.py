"""A gRPC server with what every server of the mesh has: health, reflection, channelz, layers, and its streams."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from libs.rpc.interceptors import Layer, layered
from libs.rpc.serving import Methods, telling
from libs.streams.server import Handler, StreamServer


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer and how to add it."""

    name: str
    """The full name of the protobuf service."""
    add: Callable[[Any, Any], None]
    """The generated add_…Servicer_to_server."""
    servicer: Any


class RpcServer:
    """One port, NOT_SERVING until `set_serving(True)`.

    Args:
        listen: host:port; port 0 takes a free one, see `port`.
        services: What is served.
        layers: Around every call of these services, outermost first.
        tls_dir: See settings.Process.
        streams: Served without layers, as bytes, by /package.Service/Method.

    Raises TypeError for a method that layers cannot hold.
    """

    def __init__(
        self,
        listen: str,
        services: Sequence[Service],
        layers: Sequence[Layer],
        tls_dir: Path | None,
        streams: Mapping[str, Handler] | None = None,
    ) -> None:
        self._listen = listen
        self._health = health.aio.HealthServicer()
        self._names = ["", *(service.name for service in services)]
        own = Methods(lambda path, behavior: layered(path, behavior, layers))
        for service in services:
            service.add(service.servicer, own)
        foreign = Methods(lambda path, behavior: behavior)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, foreign)
        channelz.add_channelz_servicer(foreign)
        listed = [
            *(service.name for service in services),
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflector = reflection.aio.ReflectionServicer(listed, pool=descriptor_pool.Default())
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, foreign)
        standing = {path: telling(handler) for path, handler in (streams or {}).items()}
        self.streams = StreamServer({**foreign.handlers, **own.handlers, **standing}, tls_dir)

    @property
    def port(self) -> int:
        """The port that it listens at; known once it has started."""
        return self.streams.port

    async def start(self) -> None:
        """Opens the port. Raises OSError when it is taken."""
        await self.set_serving(False)
        await self.streams.start(self._listen)

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of every service, and of ""."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)

    def retire(self) -> None:
        """Sends clients elsewhere for their next calls; see StreamServer."""
        self.streams.retire()

    async def stop(self) -> None:
        """Takes no new calls, and breaks the running ones."""
        await self.streams.stop()
