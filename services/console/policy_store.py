"""A policy on its way into etcd."""

from dataclasses import dataclass

from libs.registry import Registry, encode
from services.console.policy import PREFIXES, Policy


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did, by key."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]


async def apply(registry: Registry, policy: Policy, *, prune: bool) -> Applied:
    """Writes what differs; with `prune`, removes what the policy does not hold.

    Each object is written by itself, in the order of PREFIXES, and removed in the other: readers never see a name
    without what it stands for. Kill switches are left alone. Raises RegistryError.
    """
    stored: dict[str, bytes] = {}
    for prefix in PREFIXES:
        _, entries = await registry.client.get_prefix(prefix)
        stored |= {entry.key: entry.value for entry in entries}
    wanted = {key: encode(message) for key, message in policy.objects.items()}
    written = [key for key in sorted(wanted, key=_rank) if stored.get(key) != wanted[key]]
    for key in written:
        await registry.client.put(key, wanted[key])
    removed = sorted(stored.keys() - wanted.keys(), key=_rank, reverse=True) if prune else []
    for key in removed:
        await registry.delete(key)
    return Applied(tuple(written), tuple(sorted(wanted.keys() - set(written))), tuple(removed))


def _rank(key: str) -> tuple[int, str]:
    return next(rank for rank, prefix in enumerate(PREFIXES) if key.startswith(prefix)), key
