"""Which router gets a work? Pure."""

from collections.abc import Sequence

from libs.lane.work import Work


class RouterChoice:
    """Each in turn, of those that are ready: routers hold no queue, so none is better than another. But a router that
    has this admission's own name stands beside it, often in the same process, and gets everything while it is ready.

    Args:
        instance: This admission's name.
    """

    def __init__(self, instance: str = "") -> None:
        self._instance = instance
        self._turn = 0

    def __call__(self, work: Work, routers: Sequence[str]) -> str:
        """The router; `routers` is not empty."""
        if self._instance in routers:
            return self._instance
        self._turn += 1
        return routers[self._turn % len(routers)]
