"""Is what was applied in force? Pure; time is an argument."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from services.console.placements import Placements

FAILED_S = 5.0
"""A failed load counts once nothing else has been under way for this long: placement may try another executor."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one change is."""

    model: str
    state: Literal["waiting", "ready", "failed"]
    detail: str


class Rollout:
    """Judges changes again and again; remembers since when a model has been stuck.

    Args:
        asleep: Models that may have no copy at all until they are asked for.
    """

    def __init__(self, changes: Sequence[pb.ModelChange], asleep: Collection[str] = ()) -> None:
        self._asleep = frozenset(asleep)
        self._changes = [change for change in changes if change.kind != pb.CHANGE_KIND_UNCHANGED]
        self._stuck: dict[str, float] = {}

    def judge(self, placements: Placements, now: float) -> list[Progress]:
        """One per change, in order. `now` is in monotonic seconds."""
        return [self._patient(change, _judge(change, placements, self._asleep), now) for change in self._changes]

    def _patient(self, change: pb.ModelChange, progress: Progress, now: float) -> Progress:
        if progress.state != "failed":
            self._stuck.pop(change.model, None)
        elif now - self._stuck.setdefault(change.model, now) < FAILED_S:
            return Progress(progress.model, "waiting", progress.detail)
        return progress


def _judge(change: pb.ModelChange, placements: Placements, asleep: Collection[str]) -> Progress:
    name = change.model
    if change.kind == pb.CHANGE_KIND_REMOVED:
        left = [] if change.base else [copy for copy in placements.copies.values() if copy.model == name]
        if name in placements.models or left:
            return Progress(name, "waiting", _said(left) or "the mesh has not heard yet")
        return Progress(name, "ready", "gone")
    status = placements.models.get(name)
    if status is None or status.version != change.version:
        return Progress(name, "waiting", "the mesh has not heard yet")
    copies = [copy for copy in placements.copies.values() if copy.pool == status.pool]
    others = [
        copy for copy in placements.copies.values() if copy.model == (status.base or name) and copy.pool != status.pool
    ]
    if status.ready >= status.wanted and not others:
        if status.wanted:
            where = ", ".join(copy.executor for copy in copies if copy.state == registry_pb2.MODEL_STATE_READY)
            return Progress(name, "ready", f"{status.ready} of {status.wanted} copies, on {where}")
        if (status.base or name) in asleep:
            return Progress(name, "ready", "no copy now: it is loaded when it is asked for")
    counted = f"{status.ready} of {status.wanted} copies" if status.wanted else "no executor here can hold it"
    detail = ": ".join(filter(None, (counted, _said([*copies, *others]))))
    unplaced = placements.unplaced.get(status.base or name)
    if unplaced is not None:
        detail += f"; {unplaced.reason}"
    moving = any(
        copy.state != registry_pb2.MODEL_STATE_FAILED and copy.state != registry_pb2.MODEL_STATE_READY
        for copy in [*copies, *others]
    )
    failed = any(copy.state == registry_pb2.MODEL_STATE_FAILED for copy in copies)
    hopeless = unplaced is not None and unplaced.hopeless
    return Progress(name, "failed" if (failed or hopeless) and not moving else "waiting", detail)


def _said(copies: Sequence[pb.Copy]) -> str:
    """Copies that are not ready: where they are, how far, and why."""
    parts = []
    for copy in copies:
        if copy.state != registry_pb2.MODEL_STATE_READY:
            word = registry_pb2.ModelState.Name(copy.state).removeprefix("MODEL_STATE_")
            reason = f" ({copy.reason})" if copy.reason else ""
            parts.append(f"{word} on {copy.executor}{reason}")
        else:
            parts.append(f"READY on {copy.executor}")
    return ", ".join(parts)
