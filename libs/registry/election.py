"""One leader per role: whoever creates `leaders/{role}` leads for as long as the lease behind it lives."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import structlog
from google.protobuf.message import Message

from etcdserverpb import rpc_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.clock import Clock, SystemClock
from libs.registry import keys, transaction
from libs.registry.client import EtcdClient
from libs.registry.contact import Contact
from libs.registry.errors import CompareFailed, NotLeading, RegistryError, RegistryUnavailable
from libs.registry.values import encode
from libs.registry.watch import watch
from libs.tasks import Tasks

log = structlog.get_logger(__name__)

LEASE_SHARE = 0.8
"""Of the TTL, counted from before the renewal was sent, a leader believes in its lease for this share."""


class Election:
    """Takes part in the election for a role until closed.

    Two safeguards, since a process can be stopped at any moment without knowing: a leader steps down by its
    own clock before its lease can have ended in etcd, and what it writes is fenced, so that etcd refuses it
    once the role has passed on (Kleppmann, "How to do distributed locking", 2016: fencing tokens).

    Args:
        client: The connection; not closed here.
        role: What is to be led.
        instance: Who this is.
        ttl_s: Seconds after which the role is free when its leader has died.
        clock: Times the lease.
    """

    def __init__(
        self, client: EtcdClient, role: str, instance: str, ttl_s: int = 5, *, clock: Clock | None = None
    ) -> None:
        self._client = client
        self._role = role
        self._key = keys.leader(role)
        self._value = encode(registry_pb2.Leader(instance=instance))
        self._ttl_s = ttl_s
        self._clock = clock or SystemClock()
        self._epoch = 0
        self._valid_until = 0.0
        self._deposed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._contact = Contact(f"election of {role}")
        self._tasks = Tasks()

    @property
    def leading(self) -> bool:
        """Whether this instance leads, by its own clock: right also when the event loop was held up."""
        return self._epoch > 0 and self._clock.monotonic() < self._valid_until

    @property
    def epoch(self) -> int:
        """A number that grows with each new leader of the role: the revision of its election.

        Raises NotLeading.
        """
        if not self.leading:
            raise NotLeading(f"{self._role} is led by another instance, or by none")
        return self._epoch

    def fence(self) -> pb.Compare:
        """The condition under which a transaction of this leader may go through. Raises NotLeading."""
        return transaction.created_at(self._key, self.epoch)

    async def put_fenced(self, key: str, value: bytes | Message, lease: int = 0) -> int:
        """Writes a key, under a lease if one is given, while still leading; returns the revision. Raises NotLeading."""
        raw = encode(value) if isinstance(value, Message) else value
        return await self._transact_fenced(transaction.put(key, raw, lease))

    async def delete_fenced(self, key: str) -> int:
        """Deletes a key while still leading; returns the revision. Raises NotLeading."""
        return await self._transact_fenced(transaction.delete(key))

    async def _transact_fenced(self, operation: pb.RequestOp) -> int:
        epoch, fence = self.epoch, self.fence()
        answer, _ = await self._client.transact([fence], [operation])
        if not answer.succeeded:
            if epoch == self._epoch:
                self._deposed.set()
            raise NotLeading(f"{self._role} has passed on to another instance")
        return answer.header.revision

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back, on the event loop, when this instance has begun or ceased to lead."""
        self._listeners.append(callback)

    def start(self) -> None:
        """Begins to stand for election."""
        self._tasks.spawn(self._run(), f"election {self._role}")

    async def close(self) -> None:
        """Steps down, frees the role for the next, and stands no more. Idempotent; takes 1 s at most."""
        await self._tasks.close()

    async def __aenter__(self) -> "Election":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._wait_until_vacant()
                await self._reign()
                continue
            except TimeoutError:
                self._contact.lost(RegistryUnavailable("the lease could not be renewed in time"))
            except RegistryError as error:
                self._contact.lost(error)
            await self._contact.pause()

    async def _wait_until_vacant(self) -> None:
        holder = await self._client.get(self._key)
        self._contact.made()
        if holder is None:
            return
        async with aclosing(watch(self._client, self._key, holder.mod_revision + 1)) as batches:
            async for batch in batches:
                self._contact.made()
                if any(change.value is None for change in batch.changes):
                    return

    async def _reign(self) -> None:
        """Tries to take the role; leads until deposed, which returns, or until etcd fails, which raises
        RegistryError or TimeoutError."""
        asked = self._clock.monotonic()
        lease = await self._client.grant(self._ttl_s)
        try:
            try:
                epoch = await self._client.compare_and_put(self._key, self._value, 0, lease)
            except CompareFailed:
                return
            self._deposed.clear()
            self._epoch, self._valid_until = epoch, self._believe(asked)
            self._notify()
            while not await self._deposed_within(self._ttl_s / 3):
                async with asyncio.timeout(self._valid_until - self._clock.monotonic()):
                    self._valid_until = await self._renew(lease)
        finally:
            self._step_down()
            await self._free(lease)

    async def _renew(self, lease: int) -> float:
        """Tries until it succeeds; returns how long the lease can be believed in then."""
        while True:
            asked = self._clock.monotonic()
            try:
                await self._client.keepalive(lease)
            except RegistryUnavailable as error:
                self._contact.lost(error)
                await self._contact.pause()
            else:
                self._contact.made()
                return self._believe(asked)

    def _believe(self, asked: float) -> float:
        return asked + self._ttl_s * LEASE_SHARE

    async def _deposed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._deposed.wait()
        except TimeoutError:
            return False

    def _step_down(self) -> None:
        if self._epoch:
            self._epoch = 0
            self._notify()

    async def _free(self, lease: int) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._client.revoke(lease)
        except (RegistryError, TimeoutError):
            pass  # etcd will end it

    def _notify(self) -> None:
        log.info("leadership changed", role=self._role, leading=self.leading)
        for callback in self._listeners:
            try:
                callback()
            except Exception:
                log.exception("callback failed", subject=f"election of {self._role}")
