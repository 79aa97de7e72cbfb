"""How a background task bears with an etcd that comes and goes: it waits, and it does not chatter."""

import asyncio
import random

import structlog

log = structlog.get_logger(__name__)


class Backoff:
    """Growing pauses with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015).

    Args:
        first_s: Upper bound of the first pause, in seconds; doubles with each pause.
        most_s: Upper bound of every pause, in seconds.
        rng: Where the jitter comes from.
    """

    def __init__(self, first_s: float, most_s: float, rng: random.Random) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._bound_s = first_s
        self._rng = rng

    def next(self) -> float:
        """Seconds to wait: at least half of the current bound, so that no loop turns fast by bad luck."""
        bound_s, self._bound_s = self._bound_s, min(self._bound_s * 2, self._most_s)
        return bound_s * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """The next pause is short again."""
        self._bound_s = self._first_s


class Contact:
    """Whether a task is in touch with etcd. Logs when that changes, not at each attempt.

    Args:
        subject: What the log line is about, such as "mirror of /headrace/v1/models/".
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._backoff = Backoff(0.1, 1.0, random.Random())  # noqa: S311  (jitter, not a secret)
        self._away = False

    @property
    def stands(self) -> bool:
        """Whether etcd answered the last time."""
        return not self._away

    def made(self) -> None:
        """etcd answered."""
        self._backoff.reset()
        if self._away:
            self._away = False
            log.info("in touch with etcd again", subject=self._subject)

    def lost(self, error: Exception) -> None:
        """etcd did not answer, or answered no."""
        if not self._away:
            self._away = True
            log.warning("out of touch with etcd, goes on trying", subject=self._subject, error=str(error))

    async def pause(self) -> None:
        """Waits before the next attempt."""
        await asyncio.sleep(self._backoff.next())
