"""Says of each model that has fewer copies than it should why that is so. Pure."""

from collections.abc import Iterable

from libs.catalogue import ModelSpec
from services.placement.draft import Draft
from services.placement.fit import barred, listed, misfit, said
from services.placement.values import Lack
from services.placement.want import UNLOADED, Rank, Want


def lacks(draft: Draft, left: Iterable[Want]) -> dict[str, Lack]:
    """By model.

    Args:
        left: The wants that found no place.
    """
    stopped = {want.spec.name for want in left if want.rank == Rank.ROLLOUT}
    found: dict[str, Lack] = {}
    for name, spec in sorted(draft.world.models.items()):
        lying, old = draft.of[name], draft.old(name)
        missing = max(draft.wishes[name].need - len(draft.working(name)), 0)
        tried = spec.pool in draft.failures and bool(draft.failures[spec.pool])
        if old and (name in stopped or tried or missing):
            why, _ = _obstacles(draft, spec)
            versions = listed({copy.spec.version for copy in old})
            reason = f"version {spec.version} waits: {why}; {len(old)} copies of version {versions} stay"
            found[name] = Lack(reason, missing)
        elif missing:
            why, hopeless = _obstacles(draft, spec)
            story = "" if lying else _story(draft, name)
            found[name] = Lack(f"{story}; {why}" if story else why, missing, hopeless and not lying)
        elif not lying:
            found[name] = Lack(f"{_story(draft, name) or 'nobody has asked for it'}; it is loaded on demand")
    return found


def _story(draft: Draft, model: str) -> str:
    """How it came to lie nowhere, as this plan or an earlier one said; "" when it never lay anywhere."""
    story = draft.stories.get(model) or draft.world.stories.get(model, "").partition(";")[0]
    return story if story.startswith(UNLOADED) else ""


def _obstacles(draft: Draft, spec: ModelSpec) -> tuple[str, bool]:
    """What is in the way of one more copy, and whether it is so for good."""
    executors = draft.world.executors
    if not executors:
        return "there is no executor", False
    misfits = [misfit(spec, view) for view in executors.values()]
    if all(misfits):
        return f"none of {len(executors)} executors can hold it: {'; '.join(sorted(set(misfits)))}", True
    failures = draft.failures.get(spec.pool, {})
    fit = len(misfits) - sum(map(bool, misfits))
    there = draft.eligible(spec)
    if failures and (barred(failures, draft.world.now, draft.rules) is None or set(there) <= failures.keys()):
        return f"it {said(failures)}; it is tried again later", False
    if not there:
        return f"the {fit} executors that could hold it are away or draining", False
    lying = len(draft.working(spec.name))
    behind = f"; it {said(failures)}" if failures else ""
    return f"{lying} copies lie; no room on the {len(there)} executors that could hold it{behind}", False
