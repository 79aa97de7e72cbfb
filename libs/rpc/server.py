"""A gRPC server with what every server of the mesh has: health, reflection, channelz, layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool
from grpc import aio
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from libs.rpc.channels import SERVER_OPTIONS, server_credentials
from libs.rpc.interceptors import Layer, Layers


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer and how to add it."""

    name: str
    """The full name of the protobuf service."""
    add: Callable[[Any, aio.Server], None]
    """The generated add_…Servicer_to_server."""
    servicer: Any


class RpcServer:
    """One port, NOT_SERVING until `set_serving(True)`.

    Args:
        listen: host:port; port 0 takes a free one, see `port`.
        services: What is served.
        layers: Around every call of these services, outermost first.
        tls_dir: See settings.Process.
    """

    def __init__(self, listen: str, services: Sequence[Service], layers: Sequence[Layer], tls_dir: Path | None) -> None:
        self._server = aio.server(interceptors=[Layers(layers)], options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._names = ["", *(service.name for service in services)]
        for service in services:
            service.add(service.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        listed = [
            *(service.name for service in services),
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(listed, self._server, pool=descriptor_pool.Default())
        if tls_dir is None:
            self.port = self._server.add_insecure_port(listen)
        else:
            self.port = self._server.add_secure_port(listen, server_credentials(tls_dir))

    async def start(self) -> None:
        """Opens the port."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of every service, and of ""."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, gives the running ones `grace_s` seconds, then cancels them."""
        await self._server.stop(grace_s)
