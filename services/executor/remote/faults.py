"""What an endpoint's refusals mean to a caller. Pure.

Never in an error: the key, or more of the endpoint's message than a line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

from libs.errors import HeadraceError, InternalError, NotSupported, Overloaded, RequestInvalid, StageUnavailable

MESSAGE_CHARACTERS = 300
RETRY_S = (1.0, 3600.0)
"""What an endpoint's Retry-After is trusted with; the first stands for one that does not come."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A refusal, and what follows from it."""

    error: HeadraceError
    failure: bool = False
    """It counts for the breaker."""
    wait_s: float = 0.0
    """The endpoint wants nothing for so long."""
    fatal: bool = False
    """Nothing will pass until a person has done something."""


def of_status(status: int, headers: Mapping[str, str], message: str, now: float) -> Fault:
    """What an answer's status means.

    Args:
        headers: With names as in RFC 9110, case ignored by the mapping.
        message: The endpoint's own, see `message_of`.
        now: Unix seconds.
    """
    if status in (401, 403):
        return Fault(InternalError("the endpoint does not accept the executor's key"), failure=True, fatal=True)
    if status == 429:
        wait_s = retry_after_s(headers, now)
        return Fault(Overloaded(f"the endpoint is overloaded: {message}", retry_after_s=wait_s), wait_s=wait_s)
    if status in (400, 413, 422):
        unsupported = any(word in message.lower() for word in ("not support", "unsupported"))
        error = NotSupported if unsupported else RequestInvalid
        return Fault(error(f"the endpoint refuses the request: {message}"))
    retry_s = retry_after_s(headers, now) if status == 503 else RETRY_S[0]
    said = f"the endpoint answered with status {status}: {message}"
    return Fault(StageUnavailable(said, retry_after_s=retry_s), failure=True)


def broken(what: str) -> Fault:
    """The connection, or what came over it, is no answer."""
    return Fault(StageUnavailable(f"the endpoint {what}", retry_after_s=RETRY_S[0]), failure=True)


def message_of(body: bytes, secret: str) -> str:
    """The endpoint's message in a line, without the key."""
    text = body.decode("utf-8", "replace")
    try:
        document = msgspec.json.decode(body)
        inner = document.get("error", document) if isinstance(document, dict) else document
        found = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
        text = found if isinstance(found, str) else text
    except msgspec.DecodeError:
        pass
    if secret:
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS] + "…"


def retry_after_s(headers: Mapping[str, str], now: float) -> float:
    """Seconds of Retry-After, which is a number or a date (RFC 9110, 10.2.3)."""
    least, most = RETRY_S
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return least
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
    return min(max(seconds, least), most) if seconds == seconds else least
