"""Tokens used, per tenant. Pure."""

from collections.abc import Mapping

import msgspec


class Usage(msgspec.Struct):
    """What one tenant used since this process started."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    running: int = 0
    """Requests in flight."""
    refused: int = 0
    """Requests that were not admitted, by whatever rule."""


class UsageLedger:
    """One entry per tenant: bounded by the policy, since only known tenants get here."""

    def __init__(self) -> None:
        self._tenants: dict[str, Usage] = {}

    @property
    def tenants(self) -> Mapping[str, Usage]:
        """By name."""
        return self._tenants

    def running(self, tenant: str) -> int:
        """Requests in flight."""
        usage = self._tenants.get(tenant)
        return 0 if usage is None else usage.running

    def begin(self, tenant: str) -> None:
        """A request was admitted."""
        usage = self._of(tenant)
        usage.requests += 1
        usage.running += 1

    def refuse(self, tenant: str) -> None:
        """A request was not admitted."""
        self._of(tenant).refused += 1

    def end(self, tenant: str, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """A request has ended, well or not; what was computed is counted once. Raises KeyError without `begin`."""
        usage = self._tenants[tenant]
        if usage.running <= 0:
            raise ValueError(f"tenant {tenant} has no request in flight")
        usage.running -= 1
        usage.prompt_tokens += prompt_tokens
        usage.cached_tokens += cached_tokens
        usage.output_tokens += output_tokens

    def _of(self, tenant: str) -> Usage:
        usage = self._tenants.get(tenant)
        if usage is None:
            usage = self._tenants[tenant] = Usage()
        return usage
