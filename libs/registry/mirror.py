"""A live copy of a prefix of etcd, which stays usable while etcd is away."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Generic

import structlog

from libs.clock import Clock, SystemClock
from libs.registry.client import EtcdClient
from libs.registry.contact import Contact
from libs.registry.errors import RegistryError
from libs.registry.replica import Replica
from libs.registry.values import M
from libs.registry.watch import watch
from libs.tasks import Tasks

log = structlog.get_logger(__name__)


class Mirror(Generic[M]):
    """Every message under a prefix: a snapshot at a revision, then the changes behind that revision.

    When the watch breaks (etcd away, a frozen member, compaction) it reads the prefix again and works out the
    difference: that is right also when etcd has lost or replaced its history meanwhile. Until then the last
    copy stands. It holds as much as lies under the prefix, no history and no queue.

    Args:
        client: The connection; not closed here.
        prefix: One of `keys`, ending with a slash.
        message_type: What the values are.
        hold_deletions_s: Seconds after a reconnect for which deletions are held back, because the owner of
            a lease that ran out during the outage may be alive and about to announce itself; 0 means off.
            Twice the TTL of the announcements is right for leased keys.
        clock: Tells when the copy became stale, and times the holding back.
    """

    def __init__(
        self,
        client: EtcdClient,
        prefix: str,
        message_type: type[M],
        *,
        hold_deletions_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._clock = clock or SystemClock()
        self._replica = Replica(message_type, hold_deletions_s)
        self._revision = 0
        self._heard = self._clock.now()
        self._stale = True
        self._first = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._contact = Contact(f"mirror of {prefix}")
        self._release_timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    @property
    def items(self) -> Mapping[str, M]:
        """The messages by the rest of their key behind the prefix; a view that changes between awaits only.

        Messages are shared with every reader: do not change them.
        """
        return self._replica.items

    @property
    def revision(self) -> int:
        """The revision of etcd up to which changes are in; 0 before the first snapshot."""
        return self._revision

    @property
    def stale_since(self) -> float | None:
        """None while in touch with etcd; else the last sign of life, Unix seconds.

        An outage is noticed at once when the connection breaks, and within 4 s when a member freezes.
        """
        return self._heard if self._stale else None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back, on the event loop, after each batch of changes that changed an item.

        A callback that raises is logged, and called again the next time.
        """
        self._listeners.append(callback)

    async def start(self) -> None:
        """Begins, and returns once the first snapshot is in, however long etcd takes to come."""
        self._tasks.spawn(self._run(), f"mirror {self._prefix}")
        try:
            await self._first.wait()
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends following; the copy stands. Idempotent."""
        self._cancel_release()
        await self._tasks.close()

    async def __aenter__(self) -> "Mirror[M]":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except RegistryError as error:
                self._stale = True
                self._replica.suspend()
                self._cancel_release()
                self._contact.lost(error)
            await self._contact.pause()

    async def _follow(self) -> None:
        """Reads, then applies changes until the watch breaks, which raises RegistryError."""
        self._revision, entries = await self._client.get_prefix(self._prefix)
        values = {self._name(entry.key): entry.value for entry in entries}
        again = self._first.is_set()
        changed = self._replica.replace(values, self._clock.monotonic(), again=again)
        self._schedule_release()
        self._alive()
        if changed:
            self._notify()
        self._first.set()
        async with aclosing(watch(self._client, self._prefix, self._revision + 1, prefix=True)) as batches:
            async for batch in batches:
                self._alive()
                self._contact.made()  # not before: a watch that never stands must not be tried fast for ever
                if batch.changes:
                    self._revision = batch.changes[-1].mod_revision
                    if self._replica.apply((self._name(c.key), c.value) for c in batch.changes):
                        self._notify()

    def _alive(self) -> None:
        self._heard = self._clock.now()
        self._stale = False

    def _name(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _schedule_release(self) -> None:
        self._cancel_release()
        if (due := self._replica.hold_until) is not None:
            delay_s = due - self._clock.monotonic()
            self._release_timer = asyncio.get_running_loop().call_later(delay_s, self._release)

    def _cancel_release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None

    def _release(self) -> None:
        self._release_timer = None
        if self._replica.release():
            self._notify()

    def _notify(self) -> None:
        for callback in self._listeners:
            try:
                callback()
            except Exception:
                log.exception("callback failed", subject=f"mirror of {self._prefix}")
