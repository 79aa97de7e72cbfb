"""The registry against a real etcd that is killed, frozen, compacted and cut off."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from headrace.registry.v1 import registry_pb2
from libs.registry import (
    Announcement,
    Compacted,
    CompareFailed,
    Election,
    EtcdClient,
    LeaseNotFound,
    Mirror,
    Registry,
    RegistryUnavailable,
    TlsFiles,
    keys,
)
from libs.registry.client import PAGE
from libs.registry.watch import watch
from tests.system.etcd import (
    EtcdProcess,
    etcd,
    etcd_cluster,
    eventually,
    free_ports,
    leader_of,
    make_certificates,
)

KEY = keys.executor("e0")


def executor(endpoint: str = "here:1") -> registry_pb2.Executor:
    return registry_pb2.Executor(instance="e0", endpoint=endpoint)


@asynccontextmanager
async def executors(client: EtcdClient, hold_deletions_s: float = 0.0) -> AsyncIterator[Mirror[registry_pb2.Executor]]:
    async with Mirror(client, keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=hold_deletions_s) as mirror:
        yield mirror


@pytest.fixture
async def member() -> AsyncIterator[EtcdProcess]:
    async with etcd() as process:
        yield process


@pytest.fixture
async def client(member: EtcdProcess) -> AsyncIterator[EtcdClient]:
    async with EtcdClient([member.endpoint]) as connected:
        yield connected


async def test_reads_writes_and_compares(client: EtcdClient) -> None:
    assert await client.get("/k") is None
    first = await client.compare_and_put("/k", b"1", 0)
    with pytest.raises(CompareFailed) as failed:
        await client.compare_and_put("/k", b"2", 0)
    assert failed.value.actual is not None
    assert failed.value.actual.value == b"1"
    second = await client.compare_and_put("/k", b"2", first)
    assert second > first
    with pytest.raises(CompareFailed):
        await client.compare_and_delete("/k", first)
    await client.compare_and_delete("/k", second)
    assert await client.get("/k") is None
    await client.put("/k", b"3")
    assert await client.delete("/k")
    assert not await client.delete("/k")


async def test_a_prefix_is_read_whole_and_as_of_one_revision(client: EtcdClient) -> None:
    names = [f"/p/{n:04}" for n in range(PAGE + 3)]
    await asyncio.gather(*(client.put(name, b"x") for name in names))
    await client.put("/p0", b"not under it")
    revision, entries = await client.get_prefix("/p/")
    assert [entry.key for entry in entries] == names
    assert revision == len(names) + 2


async def test_leases(client: EtcdClient) -> None:
    lease = await client.grant(5)
    await client.put("/k", b"", lease)
    assert await client.keepalive(lease) == 5
    await client.revoke(lease)
    assert await client.get("/k") is None
    await client.revoke(lease)
    with pytest.raises(LeaseNotFound):
        await client.keepalive(lease)
    with pytest.raises(LeaseNotFound):
        await client.put("/k", b"", lease)


async def test_messages(client: EtcdClient) -> None:
    registry = Registry(client)
    await registry.put_message(KEY, executor())
    await client.put(keys.executor("broken"), b"{")
    assert await registry.get_message(KEY, registry_pb2.Executor) == executor()
    assert await registry.get_message(keys.executor("none"), registry_pb2.Executor) is None
    assert await registry.get_messages(keys.EXECUTORS, registry_pb2.Executor) == {"e0": executor()}
    assert await registry.delete(KEY)


async def test_gives_up_when_its_patience_has_run_out() -> None:
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(2)]
    async with EtcdClient(endpoints, patience_s=0.5) as lonely:
        started = time.monotonic()
        with pytest.raises(RegistryUnavailable, match=r"within 0\.5 s"):
            await lonely.get("/k")
        assert time.monotonic() - started < 1.0


def fail() -> None:
    raise RuntimeError("a bad listener harms nobody")


async def test_a_mirror_follows(client: EtcdClient) -> None:
    registry = Registry(client)
    await registry.put_message(KEY, executor())
    calls: list[int] = []
    async with executors(client) as mirror:
        assert dict(mirror.items) == {"e0": executor()}
        assert mirror.stale_since is None
        mirror.on_change(lambda: calls.append(len(mirror.items)))
        mirror.on_change(fail)
        revision = await registry.put_message(keys.executor("e1"), executor())
        assert await eventually(lambda: len(mirror.items) == 2, 3.0) < 1.0
        assert mirror.revision == revision
        await client.put(KEY, b"{")  # unreadable: the last value stands
        await client.delete(keys.executor("e1"))
        await eventually(lambda: len(mirror.items) == 1, 3.0)
    assert mirror.items["e0"] == executor()
    assert calls == [2, 1]


async def test_an_announcement_lives_as_long_as_its_owner(client: EtcdClient) -> None:
    async with executors(client) as mirror:
        async with Announcement(client, KEY, ttl_s=1) as announcement:
            announcement.set(executor("first:1"))
            announcement.set(executor("second:1"))
            await announcement.settled()
            await eventually(lambda: mirror.items.get("e0") == executor("second:1"), 3.0)
            await asyncio.sleep(2.5)  # outlives its TTL
            assert mirror.items["e0"] == executor("second:1")
        await eventually(lambda: "e0" not in mirror.items, 3.0)


async def test_a_lost_lease_and_a_deleted_key_are_announced_again(client: EtcdClient) -> None:
    async with executors(client) as mirror, Announcement(client, KEY, ttl_s=1) as announcement:
        announcement.set(executor())
        await announcement.settled()
        entry = await client.get(KEY)
        assert entry is not None
        assert entry.lease
        await client.revoke(entry.lease)
        await eventually(lambda: "e0" not in mirror.items, 3.0)
        await eventually(lambda: "e0" in mirror.items, 3.0)
        await client.delete(KEY)
        await eventually(lambda: "e0" not in mirror.items, 3.0)
        await eventually(lambda: "e0" in mirror.items, 3.0)


async def test_an_owner_that_starts_before_etcd(member: EtcdProcess) -> None:
    member.kill()
    async with EtcdClient([member.endpoint], patience_s=1.0) as client:
        mirror = Mirror(client, keys.EXECUTORS, registry_pb2.Executor)
        starting = asyncio.create_task(mirror.start())
        with capture_logs() as logs:
            async with Announcement(client, KEY) as announcement:
                announcement.set(executor())
                await asyncio.sleep(2.5)
                assert mirror.stale_since is not None
                assert not starting.done()
                await member.restart()
                async with asyncio.timeout(3.0):
                    await announcement.settled()
                    await starting
                await eventually(lambda: "e0" in mirror.items, 3.0)
        await mirror.close()
    warned = [entry["subject"] for entry in logs if entry["log_level"] == "warning"]
    assert sorted(warned) == [f"announcement of {KEY}", f"mirror of {keys.EXECUTORS}"]  # once each


async def test_etcd_killed_and_started_again(member: EtcdProcess, client: EtcdClient) -> None:
    registry = Registry(client)
    await registry.put_message(keys.executor("steady"), executor())
    changes: list[set[str]] = []
    async with executors(client, 2.0) as mirror, Announcement(client, KEY, ttl_s=1) as announcement:
        announcement.set(executor())
        dead = Announcement(client, keys.executor("dies"), ttl_s=1)
        dead.start()
        dead.set(executor())
        await eventually(lambda: len(mirror.items) == 3, 3.0)
        mirror.on_change(lambda: changes.append(set(mirror.items)))
        member.kill()
        await dead.withdraw()  # in vain: nobody hears it
        await eventually(lambda: mirror.stale_since is not None, 3.0)
        await asyncio.sleep(1.5)
        assert len(mirror.items) == 3  # stale but usable
        await member.restart()
        await eventually(lambda: mirror.stale_since is None, 3.0)
        await announcement.settled()
        await eventually(lambda: "dies" not in mirror.items, 5.0)
        assert changes == [{"steady", "e0"}]  # the living was never seen to go
        await registry.put_message(keys.executor("new"), executor())
        await eventually(lambda: "new" in mirror.items, 3.0)


async def test_etcd_comes_back_empty(member: EtcdProcess, client: EtcdClient) -> None:
    for _ in range(20):  # more revisions than the new store will have
        await client.put(keys.executor("forgotten"), b"{}")
    async with executors(client) as mirror, Announcement(client, KEY) as announcement:
        announcement.set(executor())
        await eventually(lambda: len(mirror.items) == 2, 3.0)
        member.kill()
        shutil.rmtree(member.folder / member.name)
        await member.restart()
        await eventually(lambda: mirror.stale_since is None and mirror.items.keys() == {"e0"}, 4.0)
        await client.put(keys.executor("new"), b"{}")
        await eventually(lambda: "new" in mirror.items, 3.0)


async def test_everything_ends_at_once_while_etcd_is_away(member: EtcdProcess, client: EtcdClient) -> None:
    mirror = Mirror(client, keys.EXECUTORS, registry_pb2.Executor)
    await mirror.start()
    announcement = Announcement(client, KEY)
    announcement.start()
    announcement.set(executor())
    await announcement.settled()
    election = Election(client, "role", "here")
    election.start()
    await eventually(lambda: election.leading, 3.0)
    member.freeze()
    try:
        started = time.monotonic()
        await mirror.close()
        await asyncio.gather(announcement.withdraw(), election.close())
        assert time.monotonic() - started < 1.5
        assert not election.leading
        waiting = asyncio.create_task(client.get(KEY))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(RegistryUnavailable):
            await waiting
    finally:
        member.thaw()


async def test_etcd_frozen_and_thawed(member: EtcdProcess, client: EtcdClient) -> None:
    async with executors(client, 2.0) as mirror, Announcement(client, KEY, ttl_s=2) as announcement:
        announcement.set(executor())
        await eventually(lambda: "e0" in mirror.items, 10.0)
        member.freeze()
        try:
            await eventually(lambda: mirror.stale_since is not None, 10.0)
            assert "e0" in mirror.items
        finally:
            member.thaw()
        await eventually(lambda: mirror.stale_since is None, 10.0)
        async with asyncio.timeout(10.0):
            await announcement.settled()
        assert "e0" in mirror.items
        await client.put(keys.executor("e1"), b"{}")
        await eventually(lambda: "e1" in mirror.items, 10.0)


async def test_history_is_gone_when_the_mirror_comes_back(member: EtcdProcess, client: EtcdClient) -> None:
    registry = Registry(client)
    for name in ("stays", "changes", "goes"):
        await registry.put_message(keys.executor(name), executor("old:1"))
    async with Cable(member.client_port) as cable, EtcdClient([cable.endpoint]) as behind:
        calls: list[int] = []
        async with executors(behind) as mirror:
            mirror.on_change(lambda: calls.append(mirror.revision))
            cable.cut()
            await eventually(lambda: mirror.stale_since is not None, 3.0)
            await registry.put_message(keys.executor("changes"), executor("new:1"))
            await registry.delete(keys.executor("goes"))
            revision = await registry.put_message(keys.executor("comes"), executor("new:1"))
            await client.compact(revision)
            cable.mend()
            await eventually(lambda: mirror.stale_since is None, 3.0)
            assert {name: each.endpoint for name, each in mirror.items.items()} == {
                "stays": "old:1", "changes": "new:1", "comes": "new:1",
            }  # fmt: skip
            assert calls == [revision]  # the difference came as one change


async def test_a_watch_from_a_compacted_revision_says_so(client: EtcdClient) -> None:
    for _ in range(3):
        revision = await client.put("/k", b"")
    await client.compact(revision)
    async with aclosing(watch(client, "/k", 2)) as batches:
        assert not (await anext(batches)).changes  # etcd opens it first and then says no
        with pytest.raises(Compacted):
            await anext(batches)


async def test_three_members_lose_their_leader() -> None:
    async with (
        etcd_cluster(3) as members,
        EtcdClient([member.endpoint for member in members]) as client,
        executors(client, 2.0) as mirror,
        Announcement(client, KEY, ttl_s=2) as announcement,
    ):
        announcement.set(executor())
        await eventually(lambda: "e0" in mirror.items, 3.0)
        (await leader_of(members)).kill()
        started = time.monotonic()
        await client.put(keys.executor("e1"), b"{}")
        assert await client.get(keys.executor("e1")) is not None
        assert time.monotonic() - started < 4.0
        await eventually(lambda: "e1" in mirror.items, 4.0)
        async with asyncio.timeout(4.0):
            await announcement.settled()
        assert "e0" in mirror.items


async def test_a_frozen_member_is_left_for_another() -> None:
    async with etcd_cluster(3) as members:
        endpoints = [member.endpoint for member in members]
        async with EtcdClient(endpoints) as client, executors(client) as mirror:
            frozen = members[endpoints.index(client.member.endpoint)]
            frozen.freeze()
            await asyncio.gather(
                client.put(keys.executor("e1"), b"{}"),  # through another member
                eventually(lambda: "e1" in mirror.items, 8.0),
            )
            assert client.member.endpoint != frozen.endpoint


async def test_tls_with_client_certificates(tmp_path: Path) -> None:
    async with etcd(tls=True) as member:
        assert member.tls is not None
        async with EtcdClient([member.endpoint], member.tls) as client, executors(client) as mirror:
            await client.put(KEY, b"{}")
            await eventually(lambda: "e0" in mirror.items, 3.0)
        other = make_certificates(tmp_path)
        stranger = TlsFiles(member.tls.ca, other.certificate, other.key)
        for tls in (None, stranger):
            async with EtcdClient([member.endpoint], tls, patience_s=0.5) as client:
                with pytest.raises(RegistryUnavailable):
                    await client.get(KEY)


class Cable:
    """A TCP relay to a port of this machine that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._mended = True
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Cable":
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        self._mended = False
        for writer in self._writers:
            writer.close()

    def mend(self) -> None:
        self._mended = True

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._mended:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, back}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._writers -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
