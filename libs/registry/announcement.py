"""A leased key that says: I am here, and this is what I am."""

import asyncio

from google.protobuf.message import Message

from libs.registry.client import EtcdClient
from libs.registry.contact import Contact
from libs.registry.errors import LeaseNotFound, RegistryError
from libs.registry.values import encode
from libs.tasks import Tasks
from libs.turns import until_next

RENEWAL = 0.3
"""Share of the TTL after which it is renewed: 1.5 s of the usual 5, which meets other turns of the process."""


class Announcement:
    """Keeps one key alive for as long as this process lives, whatever etcd does.

    Renews after RENEWAL of the TTL. When the lease is lost or somebody has deleted the key, it is written anew;
    while etcd is away, it keeps trying. Only the newest message counts: one that was not written yet when
    the next came is left out.

    `async with Announcement(client, key) as announcement:` withdraws at the end; `start` and `withdraw` do
    the same by hand.

    Args:
        client: The connection; not closed here.
        key: The key; nobody else writes it.
        ttl_s: Seconds after which the key goes when this process has died.
    """

    def __init__(self, client: EtcdClient, key: str, ttl_s: int = 5) -> None:
        self._client = client
        self._key = key
        self._ttl_s = ttl_s
        self._lease = 0
        self._value: bytes | None = None
        self._written: bytes | None = None
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._contact = Contact(f"announcement of {key}")
        self._tasks = Tasks()

    def start(self) -> None:
        """Begins; nothing is announced before the first `set`."""
        self._tasks.spawn(self._run(), f"announcement {self._key}")

    def set(self, message: Message) -> None:
        """Announces the message instead of the one before. Does not wait for etcd."""
        self._value = encode(message)
        self._settled.clear()
        self._changed.set()

    @property
    def in_touch(self) -> bool:
        """Whether etcd answered the last time it was asked."""
        return self._contact.stands

    async def settled(self) -> None:
        """Waits until etcd holds what was `set` last, however long etcd is away."""
        await self._settled.wait()

    async def withdraw(self) -> None:
        """Takes the key back and ends. Idempotent.

        Takes a second at most: when etcd is away, the key goes with its lease.
        """
        await self._tasks.close()
        lease, self._lease = self._lease, 0
        if lease:
            try:
                async with asyncio.timeout(1.0):
                    await self._client.revoke(lease)
            except (RegistryError, TimeoutError) as error:
                self._contact.lost(error)

    async def __aenter__(self) -> "Announcement":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.withdraw()

    async def _run(self) -> None:
        await self._changed.wait()
        while True:
            try:
                await self._keep()
            except LeaseNotFound as error:
                self._lease = 0
                self._contact.lost(error)
            except RegistryError as error:
                self._contact.lost(error)
            self._settled.clear()
            await self._contact.pause()

    async def _keep(self) -> None:
        """Writes and renews until something fails, which raises RegistryError. A lease that may still live is
        used again."""
        clock = asyncio.get_running_loop().time
        renew_due = 0.0
        renewals = 0
        self._written = None
        if not self._lease:
            self._lease = await self._client.grant(self._ttl_s)
            renew_due = clock() + until_next(RENEWAL * self._ttl_s)
        while True:
            if clock() >= renew_due:
                started = clock()
                await self._client.keepalive(self._lease)
                renew_due = started + until_next(RENEWAL * self._ttl_s)
                renewals += 1
                # Once per TTL see whether the key is still there: a predecessor of the same name takes it
                # along when its lease ends, and a person may have deleted it.
                if renewals % 3 == 0 and await self._client.get(self._key) is None:
                    self._written = None
            await self._write()
            self._contact.made()
            await self._wait(renew_due - clock())

    async def _write(self) -> None:
        self._changed.clear()
        value = self._value
        if value is not None and value != self._written:
            await self._client.put(self._key, value, self._lease)
            self._written = value
        if not self._changed.is_set():
            self._settled.set()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._changed.wait()
        except TimeoutError:
            pass
