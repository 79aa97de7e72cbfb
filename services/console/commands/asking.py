"""What commands that ask OperationsService have in common."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from libs.client.errors import HeadraceError
from services.console.operations import Operations, told

T = TypeVar("T")


def ask(target: str, key: str, question: Callable[[Operations], Awaitable[T]]) -> T:
    """The answer to a question. Raises Problem."""

    async def run() -> T:
        async with Operations(target, key) as operations:
            return await question(operations)

    try:
        return asyncio.run(run())
    except HeadraceError as error:
        raise told(error, target) from error


def shown(messages: Sequence[Message]) -> list[Any]:
    """Messages as JSON, with the names of the proto."""
    return [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in messages]


def table(console: Console, left: Sequence[str], right: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under headings, the last ones in columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
    for column in left:
        made.add_column(column, overflow="fold")
    for column in right:
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console.print(made)
