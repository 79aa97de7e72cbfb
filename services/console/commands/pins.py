"""`headrace pin`, `headrace pins` and `headrace unpin`."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.inference.v1 import inference_pb2
from headrace.operations.v1 import operations_pb2 as pb
from libs.client.errors import HeadraceError
from services.console.operations import Operations, told

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pin:
    """What is to be pinned: either a system prompt or the beginning of a plain one."""

    name: str
    model: str
    system: str | None
    prompt: str | None
    tenant: str
    copies: int
    revision: int | None


def pin(target: str, key: str, asked: Pin, console: Console) -> None:
    """Pins a prefix, and says how much of it. Raises Problem."""
    request = pb.PinPrefixRequest(
        name=asked.name,
        model=asked.model,
        tenant=asked.tenant,
        copies=asked.copies,
        expected_revision=asked.revision,
    )
    if asked.prompt is not None:
        request.prompt = asked.prompt
    else:
        request.chat.messages.add(role=inference_pb2.ROLE_SYSTEM, content=asked.system or "")
    pinned = _ask(target, key, lambda operations: operations.pin(request))
    where = f"{pinned.copies} executors" if pinned.copies else "every executor"
    kept = f"{pinned.tokens} tokens, {pinned.blocks} blocks of {pinned.model} on {where}"
    console.print(Text.assemble(("+ ", "green"), f"{pinned.name} pinned: {kept}"), soft_wrap=True)


def unpin(target: str, key: str, name: str, revision: int | None, console: Console) -> None:
    """Unpins a prefix. Raises Problem."""
    request = pb.UnpinPrefixRequest(name=name, expected_revision=revision)
    _ask(target, key, lambda operations: operations.unpin(request))
    console.print(Text.assemble(("- ", "red"), f"{name} not pinned any more"))


def pins(target: str, key: str, as_json: bool, console: Console) -> None:
    """Shows what is pinned. Raises Problem."""
    found = _ask(target, key, lambda operations: operations.pins())
    if as_json:
        shown = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]
        console.print_json(json.dumps(shown))
        return
    if not found:
        console.print("nothing is pinned; `headrace pin NAME --model MODEL --system-file FILE` pins a system prompt")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    for column in ("pin", "model", "tenant"):
        table.add_column(column, overflow="fold")
    for column in ("tokens", "blocks", "copies", "revision"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        figures = (each.tokens, each.blocks, each.copies or "all", each.revision)
        table.add_row(each.name, each.model, each.tenant or "–", *map(str, figures))
    console.print(table)


def _ask(target: str, key: str, ask: Callable[[Operations], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Operations(target, key) as operations:
            return await ask(operations)

    try:
        return asyncio.run(run())
    except HeadraceError as error:
        raise told(error, target) from error
