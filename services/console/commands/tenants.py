"""`headrace tenants`: who is noisy, in one command."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from libs.client.errors import HeadraceError
from services.console.commands.asking import ask, table
from services.console.operations import Operations
from services.console.tenants_view import Sender, senders

ASK_S = 3.0
"""For a process of admission to answer: one that hangs must not hide the others."""


def tenants(target: str, key: str, as_json: bool, console: Console) -> None:
    """Shows who sends how much, over all processes of admission. Raises Problem."""
    known, usages, silent = ask(target, key, lambda operations: _ask(operations, key))
    found = senders(known, usages)
    if as_json:
        console.print_json(json.dumps([asdict(each) for each in found]))
    else:
        head = ("requests/s", "limit", "tokens/min", "limit", "used", "running", "limit", "refused")
        table(console, ("tenant", ""), head, [_row(each) for each in found])
    if silent:
        said = f"without {', '.join(silent)}: not reachable from here, so these are sums of the others"
        console.print(Text(said, style="yellow"), soft_wrap=True)


async def _ask(
    operations: Operations, key: str
) -> tuple[list[policy_pb2.Tenant], list[Sequence[pb.TenantUsage]], list[str]]:
    """The tenants, what each process of admission counts, and the processes that did not answer.

    The door leads to one process; the others are asked where the registry says they are. Where none of those can be
    reached, from outside a cluster, the answer of the door stands for all.
    """
    known = await operations.every("ListTenants", pb.ListTenantsRequest(), "tenants")
    services = await operations.every("ListServices", pb.ListServicesRequest(), "services")
    admissions = sorted((each.instance, each.endpoint) for each in services if each.service == "admission")
    answers = await asyncio.gather(*(_usage(endpoint, key) for _, endpoint in admissions))
    usages = [answer for answer in answers if answer is not None]
    silent = [name for (name, _), answer in zip(admissions, answers, strict=True) if answer is None]
    if not usages:
        usages = [await operations.every("ListUsage", pb.ListUsageRequest(), "usages")]
    return known, usages, silent


async def _usage(endpoint: str, key: str) -> Sequence[pb.TenantUsage] | None:
    try:
        async with asyncio.timeout(ASK_S), Operations(endpoint, key) as operations:
            return await operations.every("ListUsage", pb.ListUsageRequest(), "usages")
    except (HeadraceError, TimeoutError):
        return None


def _row(sender: Sender) -> tuple[str | Text, ...]:
    style = "red" if sender.used >= 1 else "yellow" if sender.used >= 0.8 else ""
    return (
        Text(sender.tenant, style=style),
        "protected" if sender.protected else "",
        f"{sender.requests_per_s:.1f}",
        f"{sender.requests_per_s_limit:g}" if sender.requests_per_s_limit else "–",
        f"{sender.tokens_per_min:,.0f}",
        f"{sender.tokens_per_min_limit:,}" if sender.tokens_per_min_limit else "–",
        Text(f"{sender.used:.0%}", style=style) if sender.limited else "–",
        str(sender.running),
        str(sender.running_limit or "–"),
        str(sender.refused),
    )
