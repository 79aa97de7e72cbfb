"""The keys that only the leader of placement writes, as they are in etcd."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import structlog
from google.protobuf.message import Message

from libs.registry import transaction
from libs.registry.client import EtcdClient
from libs.registry.election import Election
from libs.registry.errors import CompareFailed, NotLeading
from libs.registry.values import ValueUnreadable, decode, encode

log = structlog.get_logger()

AT_ONCE = 60
"""Keys per transaction; etcd takes 128 operations."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    message: Message | None
    """None when the value cannot be read."""


class Book:
    """Reads its prefixes once, when a leader comes to power, and then knows them by its own writes.

    A mirror would lag behind: a plan made from it could place a copy a second time that the leader before, or
    this one, has placed a moment ago. Each write goes through only while its author leads (the fence) and while
    every key it touches is as the book says (compare and swap); what was changed together is written together.

    Args:
        types: What lies under each prefix.
    """

    def __init__(self, client: EtcdClient, election: Election, types: Mapping[str, type[Message]]) -> None:
        self.revision = 0
        """Of the newest change that the book knows."""
        self.certain = False
        """False before the first read, and while it is not known whether a write went through."""
        self._client = client
        self._election = election
        self._types = types
        self._entries: dict[str, _Entry] = {}

    async def read(self) -> None:
        """Reads everything anew, linearizably. Raises RegistryError."""
        entries: dict[str, _Entry] = {}
        for prefix, kind in self._types.items():
            _, found = await self._client.get_prefix(prefix)
            for entry in found:
                try:
                    message: Message | None = decode(entry.value, kind)
                except ValueUnreadable as error:
                    log.warning("value unreadable", key=entry.key, error=str(error))
                    message = None
                entries[entry.key] = _Entry(entry.mod_revision, message)
        self._entries = entries
        self.certain = True
        self.revision = max((entry.revision for entry in entries.values()), default=0)

    def messages(self, prefix: str, kind: type[M]) -> Iterator[tuple[str, M]]:
        """The readable messages under a prefix, by full key."""
        for key, entry in self._entries.items():
            if key.startswith(prefix) and isinstance(entry.message, kind):
                yield key, entry.message

    def get(self, key: str) -> Message | None:
        """One message."""
        entry = self._entries.get(key)
        return entry.message if entry else None

    def keys(self, prefix: str) -> set[str]:
        """All keys under a prefix, unreadable ones too."""
        return {key for key in self._entries if key.startswith(prefix)}

    async def write(self, changes: Mapping[str, Message | None]) -> None:
        """Puts and, for None, deletes; in transactions of up to AT_ONCE keys, in the order given.

        Raises NotLeading; CompareFailed when somebody else has changed a key: the book has been read anew
        then; and other RegistryErrors, behind which the book is not `certain`.
        """
        left = iter(changes.items())
        while chunk := dict(islice(left, AT_ONCE)):
            await self._write(chunk)

    async def _write(self, chunk: Mapping[str, Message | None]) -> None:
        fence = self._election.fence()
        known = [transaction.unchanged(key, self._revision(key)) for key in chunk]
        operations = [
            transaction.delete(key) if message is None else transaction.put(key, encode(message))
            for key, message in chunk.items()
        ]
        self.certain = False
        answer, _ = await self._client.transact([fence, *known], operations, [transaction.read(fence.key.decode())])
        if answer.succeeded:
            for key, message in chunk.items():
                if message is None:
                    del self._entries[key]
                else:
                    self._entries[key] = _Entry(answer.header.revision, message)
            self.revision, self.certain = answer.header.revision, True
            return
        leader = answer.responses[0].response_range.kvs
        if not leader or leader[0].create_revision != fence.create_revision:
            raise NotLeading("placement has passed on to another instance")
        await self.read()
        # The answer of an earlier attempt may have got lost: then all is as we wanted it.
        if any(self.get(key) != message for key, message in chunk.items()):
            raise CompareFailed("a placement was changed by somebody else")

    def _revision(self, key: str) -> int:
        entry = self._entries.get(key)
        return entry.revision if entry else 0
