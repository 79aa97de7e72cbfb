"""What one picture of the placements has that the one before has not."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from headrace.operations.v1 import operations_pb2 as pb
from services.admission.placement_view import Picture

K = TypeVar("K")
V = TypeVar("V")


PART = 2000
"""Copies in one message: gRPC's messages have 4 MiB."""


def snapshot(picture: Picture) -> Iterator[pb.WatchPlacementsResponse]:
    """All of it; in several messages where it is large."""
    copies = list(picture.copies.values())
    yield pb.WatchPlacementsResponse(
        snapshot=True,
        copies=copies[:PART],
        unplaced=picture.unplaced.values(),
        executors=picture.executors.values(),
        models=picture.models.values(),
        stale_since=picture.stale_since,
    )
    for start in range(PART, len(copies), PART):
        yield pb.WatchPlacementsResponse(copies=copies[start : start + PART], stale_since=picture.stale_since)


def news(before: Picture, now: Picture) -> pb.WatchPlacementsResponse | None:
    """What changed; None when nothing did."""
    message = pb.WatchPlacementsResponse(
        copies=_new(before.copies, now.copies),
        gone=[
            pb.Copy(executor=executor, pool=pool)
            for executor, pool in before.copies
            if (executor, pool) not in now.copies
        ],
        unplaced=_new(before.unplaced, now.unplaced),
        placed=[name for name in before.unplaced if name not in now.unplaced],
        executors=_new(before.executors, now.executors),
        executors_gone=[name for name in before.executors if name not in now.executors],
        models=_new(before.models, now.models),
        models_gone=[name for name in before.models if name not in now.models],
    )
    if not message.ByteSize() and bool(before.stale_since) == bool(now.stale_since):
        return None
    message.stale_since = now.stale_since
    return message


def _new(before: Mapping[K, V], now: Mapping[K, V]) -> list[V]:
    return [value for key, value in now.items() if before.get(key) != value]
