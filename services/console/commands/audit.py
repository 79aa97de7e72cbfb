"""`headrace audit list` and `headrace audit delete`."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from libs.client.errors import HeadraceError
from services.console.operations import Operations, told

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries."""

    tenant: str
    request_id: str
    hours: float
    operators: bool
    most: int


def entries(target: str, key: str, wanted: Wanted, as_json: bool, console: Console) -> None:
    """Shows entries, the newest first. Raises Problem."""
    request = pb.ListAuditRequest(
        tenant=wanted.tenant, request_id=wanted.request_id, operators_only=wanted.operators, page_size=wanted.most
    )
    if not wanted.request_id:
        request.since.FromSeconds(int(time.time() - wanted.hours * 3600))
    answer = _ask(target, key, lambda operations: operations.audit(request))
    if as_json:
        shown = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in answer.entries]
        console.print_json(json.dumps(shown))
        return
    if not answer.entries:
        console.print("no entries; `--hours` looks farther back")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    for column in ("time", "tenant", "action", "subject", "outcome"):
        table.add_column(column, no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("reason, or what changed", overflow="fold")
    for each in answer.entries:
        style = "" if each.outcome == "ok" else "yellow"
        tokens = f"{each.prompt_tokens}+{each.output_tokens}" if each.prompt_tokens else ""
        at = each.time.ToDatetime().strftime("%m-%d %H:%M:%S")
        said = " ".join(filter(None, (each.reason, each.change)))
        table.add_row(at, each.tenant, each.action, each.subject, Text(each.outcome, style), tokens, said)
    console.print(table)
    if answer.next_page_token:
        console.print(f"more than {wanted.most}; `-n` shows more", style="bright_black")


def delete(target: str, key: str, tenant: str, console: Console) -> None:
    """Deletes a tenant's entries. Raises Problem."""
    deleted = _ask(target, key, lambda operations: operations.delete_audit(tenant))
    console.print(Text.assemble(("- ", "red"), f"{deleted:,} entries of {tenant} deleted"))


def _ask(target: str, key: str, ask: Callable[[Operations], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Operations(target, key) as operations:
            return await ask(operations)

    try:
        return asyncio.run(run())
    except HeadraceError as error:
        raise told(error, target) from error
