"""Makes a new version take an old one's place, and the old one the new one's when that cannot be loaded. Pure.

Where there is memory, the new copy comes up beside the old one, which goes when the new one answers (`keep` sees to
that). Here is what happens where there is none.
"""

from collections.abc import Sequence

from services.placement.draft import Draft
from services.placement.fit import listed
from services.placement.values import Copy
from services.placement.want import Want


def swap(draft: Draft, want: Want, names: Sequence[str]) -> bool:
    """Gives an old copy's room to the new version, if others answer meanwhile or there is only this one: then
    works wait while it loads. Returns whether it did."""
    of_model = list(draft.of[want.spec.name].values())
    allowed = set(names)
    options = [
        copy
        for copy in draft.old(want.spec.name)
        if copy.executor in allowed and draft.free[copy.executor] + copy.spec.copy_bytes >= want.spec.copy_bytes
    ]
    if len(of_model) > 1:
        options = [copy for copy in options if any(draft.ready(one) for one in of_model if one is not copy)]
    if not options:
        return False
    gone = min(options, key=lambda copy: (draft.ready(copy), copy.placed_at, copy.key))
    draft.remove(gone)
    others = len(of_model) - 1
    meanwhile = f"{others} other copies answer meanwhile" if others else "works wait until it is loaded"
    reason = f"version {want.spec.version} replaces {gone.spec.version}, no room beside it: {meanwhile}"
    draft.add(Copy(gone.executor, want.spec, reason, draft.world.now))
    return True


def retire(draft: Draft, want: Want) -> bool:
    """Takes the old copies away that the new version cannot replace, when it has as many as are needed. Returns
    whether it did."""
    spec = want.spec
    ready = sum(copy.spec.pool == spec.pool and draft.ready(copy) for copy in draft.of[spec.name].values())
    if draft.failures[spec.pool] or ready < max(draft.wishes[spec.name].need, 1):
        return False
    for copy in draft.old(spec.name):
        draft.remove(copy)
    return True


def restore(draft: Draft, want: Want) -> bool:
    """Puts a missing copy of the old version back, since the new one cannot be loaded now. Returns whether it
    did."""
    old, failures = draft.old(want.spec.name), draft.failures[want.spec.pool]
    if not old or not failures:
        return False
    spec = max(old, key=lambda copy: (copy.placed_at, copy.key)).spec
    failed = {
        copy.executor: copy
        for copy in draft.of[want.spec.name].values()
        if copy.spec.pool == want.spec.pool and draft.failed(copy)
    }
    options = []
    for name in draft.eligible(spec):
        if spec.pool not in draft.on[name]:
            there = failed[name].spec.copy_bytes if name in failed else 0
            if draft.free[name] + there >= spec.copy_bytes:
                options.append((draft.free[name] < spec.copy_bytes, -draft.free[name], name))
    if not options:
        return False
    crowded, _, name = min(options)
    if crowded:
        draft.remove(failed[name])
    reason = f"version {spec.version} again: {want.spec.version} could not be loaded on {listed(failures)}"
    draft.add(Copy(name, spec, reason, draft.world.now))
    return True
