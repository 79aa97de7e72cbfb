"""`headrace policy apply`, `headrace policy check` and `headrace keys new`."""

import asyncio
import secrets
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.catalogue.rules import NAME
from libs.policy.kinds import KINDS, of_key
from libs.registry import EtcdClient, Registry, RegistryError
from services.console import policy, policy_store
from services.console.policy import Policy, PolicyInvalid
from services.console.policy_store import Applied
from services.console.problem import Problem

KEY_PREFIX = "hr-"
"""So that scanners for leaked secrets can know one when they see it."""


def apply(folder: Path, etcd: list[str], prune: bool, wait_s: float, console: Console) -> None:
    """Writes a policy to etcd and says what changed. Raises Problem."""
    loaded = _load(folder, "; nothing was written", console)
    try:
        applied = asyncio.run(_apply(loaded, etcd, prune, wait_s))
    except RegistryError as error:
        raise Problem(f"etcd at {', '.join(etcd)} did not take the policy", [str(error)]) from error
    for mark, style, keys in (("+", "green", applied.written), ("-", "red", applied.removed)):
        for key in keys:
            console.print(Text.assemble((f"{mark} ", style), key), soft_wrap=True)
    console.print(
        Text(f"{len(applied.written)} written, {len(applied.removed)} removed, {len(applied.unchanged)} unchanged")
    )


def check(folder: Path, console: Console) -> None:
    """Says whether a policy is valid, and of how much it is. Raises Problem."""
    loaded = _load(folder, "", console)
    counts = Counter(of_key(key)[0].folder for key in loaded.objects)
    console.print(Text(", ".join(f"{counts[folder]} {folder}" for folder in KINDS if counts[folder]) + ": valid"))


def _load(folder: Path, otherwise: str, console: Console) -> Policy:
    try:
        loaded = policy.load(folder)
    except PolicyInvalid as error:
        raise Problem(f"the policy in {folder} is not valid{otherwise}", error.faults) from error
    for remark in loaded.remarks:
        console.print(Text.assemble(("! ", "yellow"), remark), soft_wrap=True)
    return loaded


async def _apply(loaded: Policy, etcd: list[str], prune: bool, wait_s: float) -> Applied:
    """Tries for `wait_s` seconds: in a deployment etcd may be starting too."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    async with Registry(EtcdClient(etcd, None)) as registry:
        while True:
            try:
                return await policy_store.apply(registry, loaded, prune=prune)
            except RegistryError:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(0.5)


def new_key(tenant: str, console: Console) -> None:
    """Makes an API key and shows it this once. Raises Problem."""
    if not NAME.fullmatch(tenant):
        raise Problem(f"{tenant!r} is not a tenant's name", ["up to 63 of a-z, 0-9, '.', '_' and '-'"])
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    console.print(Text("the key; it is shown this once and kept nowhere:", style="dim"))
    console.print(Text(key, style="bold"), soft_wrap=True)
    console.print(Text(f"\nfor tenants/{tenant}.yaml:", style="dim"))
    console.print(Text(f"name: {tenant}\nkey_sha256:\n  - {policy.key_sha256(key)}"), soft_wrap=True)
