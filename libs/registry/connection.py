"""One connection to each member of etcd."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from etcdserverpb import rpc_pb2_grpc

if TYPE_CHECKING:
    from etcdserverpb.rpc_pb2_grpc import KVAsyncStub, LeaseAsyncStub, MaintenanceAsyncStub, WatchAsyncStub

HAS_LEADER = (("hasleader", "true"),)
"""Asks a member that is cut off from its leader to say so at once instead of waiting with us."""

_OPTIONS = (
    # A frozen member keeps its connections open; pings tell. etcd turns away pings under 5 s apart.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    # A member that comes back is found within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also how long one attempt to connect may take
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # the client knows the other members, and does it itself
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificates for mTLS with etcd, as PEM files. etcd takes the client certificate's CN as the user."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "TlsFiles":
        """The files `ca.crt`, `client.crt` and `client.key`."""
        return cls(ca=folder / "ca.crt", certificate=folder / "client.crt", key=folder / "client.key")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes(),
            private_key=self.key.read_bytes(),
            certificate_chain=self.certificate.read_bytes(),
        )


@dataclass(slots=True, eq=False)
class Member:
    """A member of etcd: its channel, shared by all calls and streams, and the stubs on it."""

    endpoint: str
    channel: grpc.aio.Channel
    kv: "KVAsyncStub"
    lease: "LeaseAsyncStub"
    watch: "WatchAsyncStub"
    maintenance: "MaintenanceAsyncStub"
    heard: float = float("-inf")
    """When it last answered anything, by the event loop's clock."""

    @classmethod
    def at(cls, endpoint: str, credentials: grpc.ChannelCredentials | None) -> "Member":
        """Makes the channel; it connects with the first call."""
        if credentials is None:
            channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        return cls(
            endpoint=endpoint,
            channel=channel,
            kv=rpc_pb2_grpc.KVStub(channel),
            lease=rpc_pb2_grpc.LeaseStub(channel),
            watch=rpc_pb2_grpc.WatchStub(channel),
            maintenance=rpc_pb2_grpc.MaintenanceStub(channel),
        )
