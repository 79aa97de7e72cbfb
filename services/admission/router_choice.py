"""Which router gets a work? Each in turn: routers hold no queue, so none is better than another. Pure."""

from collections.abc import Sequence

from libs.lane.work import Work


class RouterChoice:
    """Round robin over whoever is ready."""

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, work: Work, routers: Sequence[str]) -> str:
        """The next router; `routers` is not empty."""
        self._turn += 1
        return routers[self._turn % len(routers)]
