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

    Each object is written by itself, models and tiers before the routes and tenants that name them, so
    readers never see a name without what it stands for. Kill switches are left alone. Raises RegistryError.
    """
    stored: dict[str, bytes] = {}
    for prefix in PREFIXES:
        _, entries = await registry.client.get_prefix(prefix)
        stored |= {entry.key: entry.value for entry in entries}
    wanted = {key: encode(message) for key, message in policy.objects.items()}
    written = [key for key in sorted(wanted) if stored.get(key) != wanted[key]]  # "models" sorts first
    for key in written:
        await registry.client.put(key, wanted[key])
    removed = sorted(stored.keys() - wanted.keys(), reverse=True) if prune else []
    for key in removed:
        await registry.delete(key)
    return Applied(tuple(written), tuple(sorted(wanted.keys() - set(written))), tuple(removed))
