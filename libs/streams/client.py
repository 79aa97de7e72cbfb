"""Opening a stream to another process."""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libs.streams.dialed import Dialed
from libs.streams.memory import join
from libs.streams.server import StreamServer
from libs.streams.stream import Stream
from libs.streams.tls import client_context

CONNECT_S = 3.0
"""What one attempt may take: a loaded machine needs its time."""


class StreamRefused(Exception):
    """The other side is not there, or does not take the call."""


class Dialer:
    """Opens streams, plaintext or mTLS from one setting.

    Args:
        tls_dir: Folder with ca.crt, tls.crt and tls.key; None means plaintext.
        here: The servers of this process, by endpoint: to these it needs no socket.
    """

    def __init__(self, tls_dir: Path | None = None, here: Mapping[str, StreamServer] | None = None) -> None:
        self._tls: ssl.SSLContext | None = None if tls_dir is None else client_context(tls_dir)
        self._here: Mapping[str, StreamServer] = {} if here is None else here

    async def open(self, endpoint: str, path: str) -> Stream:
        """A call of /package.Service/Method at host:port, on a connection of its own, which the server has taken.

        Raises StreamRefused.
        """
        host, _, port = endpoint.rpartition(":")
        host = host.strip("[]")
        scheme = "http" if self._tls is None else "https"
        dialed: Dialed | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                if (server := self._here.get(endpoint)) is not None:
                    join(dialed := Dialed(path, endpoint, scheme), server.connected())
                else:
                    _, dialed = await asyncio.get_running_loop().create_connection(
                        lambda: Dialed(path, endpoint, scheme), host, int(port), ssl=self._tls
                    )
                ended = asyncio.ensure_future(dialed.stream.ended())
                either: list[asyncio.Future[Any]] = [dialed.stands, ended]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
        except (OSError, ssl.SSLError, ValueError, TimeoutError) as error:
            if dialed is not None:
                dialed.close()
            raise StreamRefused(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        except BaseException:
            if dialed is not None:
                dialed.close()
            raise
        if not dialed.stands.done():
            dialed.close()
            raise StreamRefused(str(await dialed.stream.ended()))
        return dialed.stream
