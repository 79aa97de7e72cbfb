"""The HTTP connection to an endpoint: requests out, events in, every trouble a Fault."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from libs.catalogue import Remote
from libs.clock import Clock
from services.executor.remote import chunks, faults, sse
from services.executor.remote.key import ApiKey

BODY_BYTES = 64 * 1024
"""Of a body that is no stream, no more is read."""
MODELS_BYTES = 4 * 1024 * 1024
TRAILER_S = 2.0
"""What comes behind the end of an answer (the usage, the end of the stream) is waited for this long."""


class EndpointFault(Exception):
    """An exchange went wrong."""

    def __init__(self, fault: faults.Fault, status: int = 0) -> None:
        super().__init__(str(fault.error))
        self.fault = fault
        self.status = status
        """Of HTTP; 0 when there was no answer."""


class Events:
    """The chunks of a stream. Not an async generator: a reader may stop anywhere and go on."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._events = sse.Events()
        self._ready: list[bytes] = []
        self.ended = False

    async def next(self) -> list[chunks.Chunk]:
        """The chunks that came next; none at the end. Raises EndpointFault."""
        while not self.ended:
            data = await self._read()
            self.ended = not data
            try:
                found = self._events.push(data)
                if chunks.DONE in found:
                    return [chunks.decode(event) for event in found[: found.index(chunks.DONE)]]
                if found:
                    return [chunks.decode(event) for event in found]
            except sse.LineTooLong:
                raise EndpointFault(faults.broken("sent an event without an end")) from None
            except chunks.ChunkInvalid:
                raise EndpointFault(faults.broken("sent an event that is no chunk")) from None
        return []

    async def _read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except TimeoutError:
            raise EndpointFault(faults.broken("fell silent")) from None
        except (aiohttp.ClientError, OSError):
            raise EndpointFault(faults.broken("broke the connection in the middle of the answer")) from None


class Endpoint:
    """An OpenAI-compatible API, over kept-alive HTTP/1.1 connections."""

    def __init__(self, remote: Remote, key: ApiKey, context: ssl.SSLContext | None, clock: Clock) -> None:
        self._base = remote.base_url.rstrip("/")
        self._key = key
        self._clock = clock
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context if context is not None else True),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=remote.connect_timeout_s, sock_read=remote.read_timeout_s
            ),
            headers={**remote.headers, "Accept-Encoding": "identity", "User-Agent": "headrace"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def models(self) -> list[str] | None:
        """The names that it lists; None where it has no such list. Raises EndpointFault."""
        async with self._ask("GET", "/models", None) as response:
            body = await _body(response, MODELS_BYTES)
            if response.status != 200:
                fault = self._fault(response, body)
                if fault.fatal:
                    raise EndpointFault(fault, response.status)
                return None
        try:
            return [entry["id"] for entry in msgspec.json.decode(body)["data"]]
        except (msgspec.DecodeError, KeyError, TypeError):
            return None

    @asynccontextmanager
    async def stream(self, path: str, request: Mapping[str, Any]) -> AsyncIterator[Events]:
        """Asks for a stream. Leaving it before its end closes the connection, so that the server stops.

        Raises EndpointFault.
        """
        async with self._ask("POST", path, msgspec.json.encode(request)) as response:
            if response.status != 200:
                raise EndpointFault(self._fault(response, await _body(response, BODY_BYTES)), response.status)
            if response.content_type != "text/event-stream":
                raise EndpointFault(faults.broken(f"sent {response.content_type!r} instead of a stream of events"))
            yield Events(response)

    def failed(self, error: object) -> EndpointFault:
        """The fault for an error that came as an event of a stream."""
        message = faults.message_of(msgspec.json.encode(error), self._key.value)
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        return EndpointFault(faults.of_status(status, {}, message, self._clock.now()), status)

    async def close(self) -> None:
        """Closes every connection."""
        await self._session.close()

    @asynccontextmanager
    async def _ask(self, method: str, path: str, body: bytes | None) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if key := self._key.read():
            headers["Authorization"] = f"Bearer {key}"
        try:
            response = await self._send(method, path, headers, body)
        except aiohttp.ClientConnectorCertificateError:
            raise EndpointFault(faults.broken("shows a certificate that is not trusted")) from None
        except aiohttp.ClientConnectorError as error:
            raise EndpointFault(faults.broken(f"cannot be reached: {error.strerror or type(error).__name__}")) from None
        except TimeoutError:
            raise EndpointFault(faults.broken("did not answer in time")) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EndpointFault(faults.broken(f"did not answer: {type(error).__name__}")) from None
        try:
            yield response
        finally:
            response.close()  # a connection whose answer was read to its end has gone back already

    async def _send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, again: bool = True
    ) -> aiohttp.ClientResponse:
        try:
            return await self._session.request(
                method, self._base + path, data=body, headers=headers, allow_redirects=False
            )
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not again:
                raise
        # The server closed a connection that it had kept, just when we took it.
        return await self._send(method, path, headers, body, again=False)

    def _fault(self, response: aiohttp.ClientResponse, body: bytes) -> faults.Fault:
        message = faults.message_of(body, self._key.value)
        return faults.of_status(response.status, response.headers, message, self._clock.now())


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """A body, or the beginning of it; what breaks is left out."""
    body = b""
    try:
        while len(body) < most and (part := await response.content.readany()):
            body += part
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass
    return body[:most]
