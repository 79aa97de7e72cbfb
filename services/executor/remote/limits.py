"""How fast an endpoint may be asked: requests and tokens per minute, as token buckets. Pure.

A bucket that is empty goes into debt, and whoever comes next waits until the debt is paid: so works go in the
order in which they asked, without a queue.
"""

BURST_S = 10.0
"""What a bucket holds: what flows into it in this time, and at least one request."""


class Bucket:
    """So much per minute; 0 is without limit."""

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute / 60.0
        self._most = max(self._rate * BURST_S, 1.0)
        self._level = self._most
        self._at = 0.0

    def take(self, amount: float, now: float) -> float:
        """Takes an amount, and returns the seconds until it may be used.

        An amount that the bucket could never hold may be used when it is full.
        """
        if not self._rate:
            return 0.0
        self._level = min(self._level + (now - self._at) * self._rate, self._most)
        self._at = now
        wait = max((min(amount, self._most) - self._level) / self._rate, 0.0)
        self._level -= amount
        return wait

    def give_back(self, amount: float) -> None:
        """Returns what was taken and not used; below 0, takes what was used beyond."""
        self._level = min(self._level + amount, self._most)


class Limits:
    """What an endpoint allows. Times are of one monotonic clock, in seconds.

    Args:
        requests: Per minute; 0 is without limit.
        tokens: Per minute, of prompts and answers together; 0 is without limit.
    """

    def __init__(self, requests: int, tokens: int) -> None:
        self._requests = Bucket(requests)
        self._tokens = Bucket(tokens)
        self._closed_until = 0.0

    def take(self, tokens: int, now: float) -> float:
        """Takes a request with so many tokens at most, and returns the seconds that it has to wait."""
        return max(self._requests.take(1, now), self._tokens.take(tokens, now), self.closed_s(now))

    def give_back(self, tokens: int, request: bool = False) -> None:
        """Returns tokens that were not used, and the request if it was never sent."""
        self._tokens.give_back(tokens)
        if request:
            self._requests.give_back(1)

    def closed_s(self, now: float) -> float:
        """Seconds until the endpoint wants works again."""
        return max(self._closed_until - now, 0.0)

    def close(self, seconds: float, now: float) -> None:
        """The endpoint said that it wants none for a time."""
        self._closed_until = max(self._closed_until, now + seconds)
