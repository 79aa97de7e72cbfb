"""Finds a place for every missing copy, or does not. Pure."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import count

from services.placement.draft import Draft
from services.placement.fit import backoff_s
from services.placement.repack import repack
from services.placement.rollout import restore, retire, swap
from services.placement.room import ANY, FLOOR, SPARE, Cost, candidates, choose, victims
from services.placement.values import Copy
from services.placement.want import UNLOADED, Rank, Want, wants


def fill(draft: Draft) -> list[Want]:
    """Places what is missing, the most urgent first; returns what found no place.

    Ends: only copies that were there before are unloaded or moved, and each at most once.
    """
    numbers = count()
    rounds = dict.fromkeys(draft.world.models, 0)
    queue = [(want.order, next(numbers), 0, want) for model in draft.world.models for want in wants(draft, model)]
    heapify(queue)
    left: list[Want] = []
    stuck: set[tuple[str, int]] = set()
    while queue:
        _, _, turn, want = heappop(queue)
        model = want.spec.name
        if turn != rounds[model]:
            continue  # it has lost a copy since, and wants more
        if (model, turn) in stuck:
            left.append(want)  # what the copy before did not get, this one does not get either
            continue
        lost = _satisfy(draft, want)
        if lost is None:
            stuck.add((model, turn))
            left.append(want)
            continue
        for loser in set(lost):
            rounds[loser] += 1
            left = [one for one in left if one.spec.name != loser]
            for again in wants(draft, loser):
                heappush(queue, (again.order, next(numbers), rounds[loser], again))
    # Room may have come free since: more than was needed was unloaded, or a smaller version took the place of a larger.
    return [want for want in left if not _take_free(draft, want, candidates(draft, want))]


def everywhere(draft: Draft) -> None:
    """Gives models that belong on every executor the room that nobody else wants."""
    for name, spec in sorted(draft.world.models.items(), key=lambda item: (not item[1].pinned, item[0])):
        if not draft.wishes[name].everywhere or draft.old(name):
            continue
        failures, now = draft.failures[spec.pool], draft.world.now
        for executor in draft.eligible(spec):
            failure = failures.get(executor)
            if failure is not None and now < failure.at + backoff_s(failure, draft.rules):
                continue
            if spec.pool not in draft.on[executor] and draft.free[executor] >= spec.copy_bytes:
                draft.add(Copy(executor, spec, "one on every executor with room", now))


def _satisfy(draft: Draft, want: Want) -> list[str] | None:
    """Places a copy by the mildest means that does it; returns the models that lost one by that, or None."""
    names = candidates(draft, want)
    if _take_free(draft, want, names):
        return []
    first = not any(key[1] == want.spec.pool for key in draft.of[want.spec.name])
    by_right = want.rank == Rank.STARVING or (want.spec.pinned and want.rank == Rank.FLOOR)
    if (lost := _unload(draft, want, names, FLOOR if want.rank == Rank.FLOOR else SPARE)) is not None:
        return lost
    if first and names and (found := repack(draft, want, names)) is not None:
        _move(draft, want, *found)
        return []
    if by_right and victims(draft, want, names, SPARE, soon=True) is not None:
        return None  # a copy that nobody needs may go in a moment: nobody is to lose one that the catalogue wants
    if by_right and (lost := _unload(draft, want, names, ANY)) is not None:
        return lost
    if want.rank == Rank.ROLLOUT and (swap(draft, want, names) or retire(draft, want)):
        return []
    if want.rank != Rank.ROLLOUT and restore(draft, want):
        return []
    return None


def _take_free(draft: Draft, want: Want, names: Sequence[str]) -> bool:
    name = choose(draft, want, names)
    if name is None:
        return False
    _put(draft, want, name, f"most free memory of {len(names)} executors")
    return True


def _unload(draft: Draft, want: Want, names: Sequence[str], allowed: frozenset[Cost]) -> list[str] | None:
    found = victims(draft, want, names, allowed)
    if found is None:
        return None
    executor, copies = found
    notes = []
    for copy in copies:
        model, load = copy.spec.name, draft.load(copy.spec.name)
        if draft.failed(copy):
            why = "it could not be loaded"
        elif load.works:
            why = f"it had its turn, works for {want.spec.name} have waited {want.waiting_s:.0f} s"
        else:
            used = f"idle {max(draft.world.now - load.last_request, 0):.0f} s" if load.last_request else "never used"
            why = f"least recently used, {used}"
        draft.remove(copy)
        notes.append(f"{model} ({why})")
        if not draft.of[model]:
            draft.stories[model] = f"{UNLOADED}{executor} to make room for {want.spec.name}: {why}"
    _put(draft, want, executor, f"in the room of {', '.join(notes)}")
    return [copy.spec.name for copy in copies]


def _move(draft: Draft, want: Want, executor: str, moves: Sequence[tuple[Copy, str]]) -> None:
    for copy, target in moves:
        draft.remove(copy)
        reason = f"moved from {executor} so that {want.spec.name} has room there"
        draft.add(Copy(target, copy.spec, reason, draft.world.now))
    _put(draft, want, executor, "room made by moving " + ", ".join(f"{c.spec.name} to {to}" for c, to in moves))


def _put(draft: Draft, want: Want, executor: str, how: str) -> None:
    spec = want.spec
    if want.rank == Rank.ROLLOUT:
        reason = f"version {spec.version} comes up beside the old one: {how}"
    else:
        because = [why for why in (want.why, f"works wait {want.waiting_s:.0f} s" if want.waiting_s else "") if why]
        reason = f"copy {want.number} of {want.of}{' (' + ', '.join(because) + ')' if because else ''}: {how}"
    failed = [copy for copy in draft.of[spec.name].values() if copy.spec.pool == spec.pool and draft.failed(copy)]
    if failed and want.rank != Rank.ROLLOUT:
        # It was the try before this one; with the place for another it is given up.
        before = min(failed, key=lambda copy: copy.key)
        draft.remove(before)
        reason += f"; it could not be loaded on {before.executor}"
    draft.add(Copy(executor, spec, reason, draft.world.now))
