"""Calls tools over HTTP: a POST each, every trouble a ToolFailed."""

import asyncio
from collections.abc import Mapping
from math import inf
from urllib.parse import urlsplit

import aiohttp

from libs.clock import Clock
from libs.errors import ToolFailed
from services.admission.contracts.offer import Offer

RESULT_BYTES = 64 * 1024
"""A tool that says more has failed: half of an answer may mean the opposite of the whole."""
CONNECTIONS = 256
"""To all tools together; a call beyond waits for one, within its timeout."""
PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between tries of one call: the first, doubled each time up to the second."""
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same call may succeed (RFC 9110)."""


class _Passing(Exception):
    """A failure that may pass; the text says what happened."""


class ToolCaller:
    """The connections to tools; use it with `async with`.

    Redirects are not followed, cookies not kept, proxies of the environment not used: a call goes to the host that
    the operator wrote, and to no other.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def __aenter__(self) -> "ToolCaller":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json", "User-Agent": "headrace"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, offer: Offer, arguments: str, deadline: float, headers: Mapping[str, str]) -> str:
        """What the tool says. Tries again where the offer allows it, while there is time.

        Args:
            arguments: As JSON.
            deadline: Unix seconds.

        Raises ToolFailed.
        """
        name, pause_s = offer.tool.name, PAUSE_S
        for left in range(offer.retries, -1, -1):
            timeout_s = min(offer.timeout_s, deadline - self._clock.now())
            if timeout_s <= 0:
                raise ToolFailed(f"{name} was not called: the deadline is past")
            try:
                return await self._once(offer, arguments.encode(), timeout_s, headers)
            except _Passing as failure:
                if not left or self._clock.now() + pause_s >= deadline:
                    raise ToolFailed(f"{name} {failure}") from None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("unreachable")

    async def _once(self, offer: Offer, body: bytes, timeout_s: float, headers: Mapping[str, str]) -> str:
        name = offer.tool.name
        if not _is_web(offer.tool.url):
            raise ToolFailed(f"{name} has no http or https address")
        try:
            async with self._session.post(
                offer.tool.url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=inf),  # else up to a second late
            ) as response:
                return await _result(name, response)
        except TimeoutError:
            raise _Passing(f"did not answer within {timeout_s:.3g} s") from None
        except aiohttp.InvalidURL:
            raise ToolFailed(f"{name} has an address that is none") from None
        except aiohttp.ClientConnectorError as error:
            raise _Passing(f"cannot be reached: {error.strerror or type(error).__name__}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Passing(f"did not answer: {type(error).__name__}") from None


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


async def _result(name: str, response: aiohttp.ClientResponse) -> str:
    status = response.status
    if status in AGAIN:
        raise _Passing(f"answered with status {status}")
    if 300 <= status < 400:
        raise ToolFailed(f"{name} answered with status {status}: redirects are not followed")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ToolFailed(f"{name} answered compressed, which was not asked for")
    body = bytearray()
    while part := await response.content.readany():
        body += part
        if len(body) > RESULT_BYTES:
            response.close()
            raise ToolFailed(f"{name} answered with more than {RESULT_BYTES // 1024} KiB")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ToolFailed(f"{name} answered with what is not UTF-8 text") from None
    if not 200 <= status < 300:
        raise ToolFailed(f"{name} answered with status {status}: {text[:300]}")
    return text
