"""Which of today's copies stay. Pure.

What lies well stays. A copy goes only when its executor is gone, drains or cannot hold it any more, when the
catalogue or the demand wants fewer, or when a newer version has taken its place.
"""

from collections.abc import Iterable
from dataclasses import replace

from libs.catalogue import ModelSpec
from services.placement.draft import Draft
from services.placement.fit import listed, obstacle
from services.placement.values import Copy
from services.placement.want import UNLOADED


def keep(draft: Draft) -> None:
    """Puts into an empty draft what stays, pinned models first."""
    today: dict[str, list[Copy]] = {name: [] for name in draft.world.models}
    for copy in draft.world.copies:
        if copy.spec.name in today and copy.executor in draft.world.executors:
            today[copy.spec.name].append(copy)
    for spec in sorted(draft.world.models.values(), key=lambda spec: (not spec.pinned, spec.name)):
        _keep(draft, spec, today[spec.name])


def _keep(draft: Draft, spec: ModelSpec, today: list[Copy]) -> None:
    """One model: the copies of its version, and of older ones as many as are not replaced yet."""
    new = [replace(copy, spec=spec) for copy in today if copy.spec.pool == spec.pool]
    new = [copy for copy in new if not obstacle(spec, draft.world.executors[copy.executor])]
    old = [copy for copy in today if copy.spec.pool != spec.pool]
    old = [copy for copy in old if not obstacle(copy.spec, draft.world.executors[copy.executor])]
    if not draft.failures[spec.pool]:
        old = [copy for copy in old if _serves(draft, copy)]
    wish = draft.wishes[spec.name]
    at = {copy.executor for copy in [*new, *old]}  # the new version beside the old one is not one copy more
    target = max(wish.need, min(len(at), wish.keep))

    ready = {copy.executor for copy in new if draft.ready(copy)}
    good = [copy for copy in new if not draft.failed(copy)]
    old = _best(draft, old, max(target - len(ready), 0), spec.spread_label, beside=ready)
    good = _best(draft, good, target, spec.spread_label)
    failed = [copy for copy in new if draft.failed(copy)]
    if not wish.everywhere:
        failed = failed[: max(target + bool(old) - len(old) - len(good), 0)]
    for copy in [*good, *old, *failed]:
        if draft.free[copy.executor] >= copy.spec.copy_bytes:  # a model may have grown
            draft.add(copy)
    if today and not draft.of[spec.name] and not wish.need:
        where = listed(copy.executor for copy in today)
        draft.stories[spec.name] = f"{UNLOADED}{where}: nobody asks for it"


def _serves(draft: Draft, copy: Copy) -> bool:
    """Whether a copy of an old version is of any use: it answers, or may do so as soon as its executor is back.
    One that would have to be loaded first is not: the new version is loaded instead."""
    present = draft.world.executors[copy.executor].present
    return not present or draft.state(copy) in ("ready", "draining")


def _best(draft: Draft, copies: Iterable[Copy], count: int, label: str, beside: Iterable[str] = ()) -> list[Copy]:
    """The copies to keep: those that answer, over many values of the label, the oldest.

    Args:
        beside: Executors that hold a newer version: the old one there is the first to go.
    """
    left, values = list(copies), dict[str, int]()
    kept: list[Copy] = []
    if len(left) <= count:
        return left
    beside = set(beside)

    def badness(copy: Copy) -> tuple[object, ...]:
        view = draft.world.executors[copy.executor]
        usefulness = 0 if draft.ready(copy) else 1 if not view.present else 2
        value = (view.labels or {}).get(label, "")
        return usefulness, values.get(value, 0), copy.executor in beside, copy.placed_at, copy.executor

    while len(kept) < count:
        best = min(left, key=badness)
        left.remove(best)
        kept.append(best)
        if label:
            value = (draft.world.executors[best.executor].labels or {}).get(label, "")
            values[value] = values.get(value, 0) + 1
    return kept
