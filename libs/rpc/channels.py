"""gRPC channels to other processes of the mesh, for single calls: one per endpoint."""

from pathlib import Path

import grpc
from grpc import aio

from libs.streams.call import KEEPALIVE_S, MESSAGE_BYTES

CLIENT_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Without these two a writer runs a hundred thousand small messages ahead of a reader that stopped.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65535),
    # A neighbour that restarts is back within a second; the defaults would look again after 1 to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name this is what one attempt to connect may take: a loaded machine needs its time.
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


class Channels:
    """The channels of a process, plaintext or mTLS from one setting.

    Args:
        tls_dir: Folder with ca.crt, tls.crt and tls.key; None means plaintext.
    """

    def __init__(self, tls_dir: Path | None = None) -> None:
        self._credentials = None if tls_dir is None else _client_credentials(tls_dir)
        self._channels: dict[str, aio.Channel] = {}

    def connect(self, endpoint: str) -> aio.Channel:
        """The channel to host:port; made on first use, shared after."""
        channel = self._channels.get(endpoint)
        if channel is None:
            if self._credentials is None:
                channel = aio.insecure_channel(endpoint, options=CLIENT_OPTIONS)
            else:
                channel = aio.secure_channel(endpoint, self._credentials, options=CLIENT_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    async def close(self) -> None:
        """Closes all; calls in flight are cancelled."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()


def _client_credentials(tls_dir: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=(tls_dir / "ca.crt").read_bytes(),
        private_key=(tls_dir / "tls.key").read_bytes(),
        certificate_chain=(tls_dir / "tls.crt").read_bytes(),
    )
