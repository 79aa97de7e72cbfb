"""A client for the part of etcd's v3 API that the mesh uses (docs/decisions/0003-own-etcd-client.md).

A call that fails because a member is away goes on to the next member, with growing pauses after each round,
until it succeeds or its patience has run out.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from etcdserverpb import rpc_pb2 as pb
from libs.registry import transaction
from libs.registry.connection import HAS_LEADER, Member, TlsFiles
from libs.registry.contact import Backoff
from libs.registry.errors import CompareFailed, LeaseNotFound, RegistryUnavailable, translated
from libs.settings import Etcd

PAGE = 500
"""Keys per answer of a prefix read; keeps answers well under gRPC's 4 MiB."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it was read."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a member says of itself."""

    endpoint: str
    version: str
    member_id: int
    leader_id: int
    """0 while the cluster has no leader."""
    revision: int
    db_bytes: int


class EtcdClient:
    """Speaks to a cluster of etcd. Any number of tasks may share one.

    Every method raises RegistryUnavailable once its patience has run out, and RegistryRefused when etcd says
    no. A write that was repeated because its answer got lost may have been applied twice; the compare_and_…
    methods see through that.

    Args:
        endpoints: host:port of each member.
        tls: Certificates; None means plaintext.
        timeout_s: Seconds that one member gets to answer.
        patience_s: Seconds that a call may take over all members and attempts.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: TlsFiles | None = None,
        *,
        timeout_s: float = 2.0,
        patience_s: float = 5.0,
    ) -> None:
        if not endpoints:
            raise ValueError("etcd has no endpoints")
        credentials = tls.credentials() if tls else None
        self._members = [Member.at(endpoint, credentials) for endpoint in endpoints]
        self._rng = random.Random()  # noqa: S311  (spreads load, keeps no secret)
        self._current = self._rng.randrange(len(self._members))
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Etcd) -> "EtcdClient":
        """A client as HEADRACE_ETCD and HEADRACE_ETCD_TLS_DIR say. Raises OSError: no certificates."""
        folder = settings.etcd_tls_dir
        return cls(settings.etcd, TlsFiles.in_folder(folder) if folder else None)

    @property
    def member(self) -> Member:
        """The member that calls go to now. Raises RegistryUnavailable after `close`."""
        if self._closed:
            raise RegistryUnavailable("the client is closed")
        return self._members[self._current]

    def leave(self, member: Member) -> None:
        """Sends later calls to the next member, unless they have left this one already."""
        if member is self._members[self._current]:
            self._current = (self._current + 1) % len(self._members)

    async def get(self, key: str) -> Entry | None:
        """Reads a key, linearizably; None when it does not exist."""
        answer, _ = await self._call(_range(pb.RangeRequest(key=key.encode())))
        return _entry(answer.kvs[0]) if answer.kvs else None

    async def get_prefix(self, prefix: str) -> tuple[int, list[Entry]]:
        """Reads every key that begins with `prefix` as of one revision, which comes first in the result.

        Raises Compacted when that revision disappears between two pages.
        """
        request = pb.RangeRequest(key=prefix.encode(), range_end=transaction.end_of(prefix), limit=PAGE)
        entries: list[Entry] = []
        while True:
            answer, _ = await self._call(_range(request))
            entries.extend(map(_entry, answer.kvs))
            if not request.revision:
                request.revision = answer.header.revision
            if not answer.more:
                return request.revision, entries
            request.key = answer.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Writes a key, attached to `lease` unless that is 0; returns the revision.

        Raises LeaseNotFound.
        """
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        answer, _ = await self._call(lambda m, t: m.kv.Put(request, timeout=t, metadata=HAS_LEADER))
        return answer.header.revision

    async def delete(self, key: str) -> bool:
        """Deletes a key; returns whether there was one, as far as that can be known."""
        request = pb.DeleteRangeRequest(key=key.encode())
        answer, repeated = await self._call(lambda m, t: m.kv.DeleteRange(request, timeout=t, metadata=HAS_LEADER))
        return answer.deleted > 0 or repeated

    async def compare_and_put(self, key: str, value: bytes, expected_mod_revision: int, lease: int = 0) -> int:
        """Writes a key if it was last changed at `expected_mod_revision` (0: if it does not exist).

        Returns the revision of the write. Raises CompareFailed, with the key as it is, and LeaseNotFound.
        """
        revision, actual, repeated = await self._compare_and(
            key, expected_mod_revision, transaction.put(key, value, lease)
        )
        if revision is not None:
            return revision
        # The answer of an earlier attempt may have got lost: then the key already is as we wanted it.
        if repeated and actual is not None and (actual.value, actual.lease) == (value, lease):
            return actual.mod_revision
        raise CompareFailed(f"{key} is not at revision {expected_mod_revision}", actual)

    async def compare_and_delete(self, key: str, expected_mod_revision: int) -> None:
        """Deletes a key if it was last changed at `expected_mod_revision`. Raises CompareFailed."""
        revision, actual, repeated = await self._compare_and(key, expected_mod_revision, transaction.delete(key))
        if revision is None and not (repeated and actual is None):
            raise CompareFailed(f"{key} is not at revision {expected_mod_revision}", actual)

    async def transact(
        self,
        compare: Sequence[pb.Compare],
        success: Sequence[pb.RequestOp],
        failure: Sequence[pb.RequestOp] = (),
    ) -> tuple[pb.TxnResponse, bool]:
        """Runs a transaction (`libs.registry.transaction` makes its parts).

        Returns etcd's answer, and whether an earlier attempt may have been applied too.
        """
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        return await self._call(lambda m, t: m.kv.Txn(request, timeout=t, metadata=HAS_LEADER))

    async def compact(self, revision: int) -> None:
        """Drops the history before `revision`. Operators and tests do this; services never."""
        request = pb.CompactionRequest(revision=revision, physical=True)
        await self._call(lambda m, t: m.kv.Compact(request, timeout=t, metadata=HAS_LEADER))

    async def grant(self, ttl_s: int) -> int:
        """Makes a lease that ends `ttl_s` seconds after its last renewal; returns its id."""
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        answer, _ = await self._call(lambda m, t: m.lease.LeaseGrant(request, timeout=t, metadata=HAS_LEADER))
        return answer.ID

    async def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys. A lease that is gone already is no error."""
        request = pb.LeaseRevokeRequest(ID=lease)
        try:
            await self._call(lambda m, t: m.lease.LeaseRevoke(request, timeout=t, metadata=HAS_LEADER))
        except LeaseNotFound:
            pass

    async def keepalive(self, lease: int) -> int:
        """Renews a lease; returns the seconds it has from now. Raises LeaseNotFound."""
        request = pb.LeaseKeepAliveRequest(ID=lease)

        async def renew(member: Member, timeout_s: float) -> pb.LeaseKeepAliveResponse:
            # etcd offers renewal as a stream only; one short stream each keeps no state to recover.
            call = member.lease.LeaseKeepAlive(iter([request]), timeout=timeout_s, metadata=HAS_LEADER)
            try:
                answer = await call.read()
            finally:
                call.cancel()
            if not isinstance(answer, pb.LeaseKeepAliveResponse):
                raise RegistryUnavailable("the stream ended without an answer")
            return answer

        answer, _ = await self._call(renew)
        if answer.TTL <= 0:
            raise LeaseNotFound(f"lease {lease:x} has expired")
        return answer.TTL

    async def status(self) -> Status:
        """Asks the member that calls go to now."""

        async def ask(member: Member, timeout_s: float) -> Status:
            answer = await member.maintenance.Status(pb.StatusRequest(), timeout=timeout_s)
            return Status(
                endpoint=member.endpoint,
                version=answer.version,
                member_id=answer.header.member_id,
                leader_id=answer.leader,
                revision=answer.header.revision,
                db_bytes=answer.dbSize,
            )

        status, _ = await self._call(ask)
        return status

    async def close(self) -> None:
        """Closes the connections; what is still under way fails. Idempotent."""
        self._closed = True
        for member in self._members:
            await member.channel.close()

    async def __aenter__(self) -> "EtcdClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _compare_and(
        self, key: str, mod_revision: int, operation: pb.RequestOp
    ) -> tuple[int | None, Entry | None, bool]:
        """The revision of the write or None, the key as it is where nothing was written, whether repeated."""
        answer, repeated = await self.transact(
            [transaction.unchanged(key, mod_revision)], [operation], [transaction.read(key)]
        )
        if answer.succeeded:
            return answer.header.revision, None, repeated
        found = answer.responses[0].response_range.kvs
        return None, _entry(found[0]) if found else None, repeated

    async def _call(self, send: Callable[[Member, float], Awaitable[A]]) -> tuple[A, bool]:
        """Sends until a member answers; returns the answer and whether it took more than one attempt."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + self._patience_s
        backoff = Backoff(0.05, 1.0, self._rng)
        failures = 0
        while True:
            member = self.member
            try:
                with translated():
                    answer = await send(member, min(self._timeout_s, give_up - clock()))
                member.heard = clock()
                return answer, failures > 0
            except RegistryUnavailable as error:
                failures += 1
                self.leave(member)
                pause_s = backoff.next() if failures % len(self._members) == 0 else 0.0
                if clock() + pause_s >= give_up:
                    text = f"no member of etcd answered within {self._patience_s:g} s: {error}"
                    raise RegistryUnavailable(text) from error
            await asyncio.sleep(pause_s)


def _range(request: pb.RangeRequest) -> Callable[[Member, float], Awaitable[pb.RangeResponse]]:
    return lambda member, timeout_s: member.kv.Range(request, timeout=timeout_s, metadata=HAS_LEADER)


def _entry(kv: pb.KeyValue) -> Entry:
    return Entry(kv.key.decode(errors="replace"), kv.value, kv.create_revision, kv.mod_revision, kv.lease)
