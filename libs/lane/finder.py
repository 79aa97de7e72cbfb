"""Finds the stage at an endpoint: in this process if it is here, and else at the other end of a stream."""

from collections.abc import Callable
from typing import Protocol

from grpc import aio

from libs.lane.client import RemoteStage
from libs.lane.near import NearStage
from libs.lane.stage import Stage
from libs.streams.client import Dialer
from libs.tasks import Tasks


class NeighborStage(Stage, Protocol):
    """A stage that others reach, too."""

    endpoint: str
    """host:port."""


class StageFinder:
    """The way to all stages.

    Args:
        connect: Gives the channel to an endpoint, for questions.
        dialer: Opens the lanes.
        tasks: Owns the lanes' tasks.
    """

    def __init__(self, connect: Callable[[str], aio.Channel], dialer: Dialer, tasks: Tasks) -> None:
        self._connect = connect
        self._dialer = dialer
        self._tasks = tasks
        self._here: dict[str, NearStage] = {}

    def serve(self, endpoint: str, stage: Stage, stirred: Callable[[], None]) -> None:
        """From now on this stage is found here."""
        self._here[endpoint] = NearStage(endpoint, stage, stirred)

    def at(self, endpoint: str) -> NeighborStage:
        """The stage at host:port."""
        if (here := self._here.get(endpoint)) is not None:
            return here
        return RemoteStage(endpoint, self._connect, self._dialer, self._tasks)
