"""Elections over a real etcd: one leader at a time, and no word of an old one counts."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from libs.clock import ManualClock
from libs.registry import Election, EtcdClient, NotLeading, keys, transaction
from tests.system.etcd import EtcdProcess, etcd, etcd_cluster, eventually, leader_of

ROLE = "placement"
PLAN = "/plan"


@pytest.fixture
async def member() -> AsyncIterator[EtcdProcess]:
    async with etcd() as process:
        yield process


@pytest.fixture
async def client(member: EtcdProcess) -> AsyncIterator[EtcdClient]:
    async with EtcdClient([member.endpoint]) as connected:
        yield connected


def leads(election: Election) -> bool:
    return election.leading


async def holder_lease(client: EtcdClient) -> int:
    entry = await client.get(keys.leader(ROLE))
    assert entry is not None
    return entry.lease


async def test_the_role_passes_on_when_its_leader_leaves(client: EtcdClient) -> None:
    candidates = [Election(client, ROLE, f"p{n}", ttl_s=2) for n in range(3)]
    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, sum(each.leading for each in candidates))

    epochs = []
    for candidate in candidates:
        candidate.on_change(count)
        candidate.start()
    for _ in range(3):
        await eventually(lambda: any(each.leading for each in candidates), 3.0)
        (leader,) = [each for each in candidates if each.leading]
        epochs.append(leader.epoch)
        await leader.put_fenced(PLAN, str(leader.epoch).encode())
        await leader.close()
        assert not leader.leading
        with pytest.raises(NotLeading):
            leader.fence()
    assert most == 1
    assert epochs == sorted(set(epochs))  # grows
    assert await client.get(keys.leader(ROLE)) is None


async def test_a_leader_stays_beyond_its_ttl(client: EtcdClient) -> None:
    async with Election(client, ROLE, "p0", ttl_s=1) as election:
        await eventually(lambda: election.leading, 3.0)
        epoch = election.epoch
        for _ in range(25):
            await asyncio.sleep(0.1)
            assert election.leading
        assert election.epoch == epoch


async def test_a_leader_that_does_not_know_it_was_replaced_is_refused(client: EtcdClient) -> None:
    standing_still = ManualClock()  # an old leader whose clock does not tell it to step down
    async with Election(client, ROLE, "old", ttl_s=30, clock=standing_still) as old:
        await eventually(lambda: old.leading, 3.0)
        fence = old.fence()
        await old.put_fenced(PLAN, b"old")
        async with Election(client, ROLE, "new", ttl_s=2) as new:
            await asyncio.sleep(0.3)
            assert not leads(new)
            await client.revoke(await holder_lease(client))  # as if it had expired
            await eventually(lambda: new.leading, 3.0)
            await new.put_fenced(PLAN, b"new")
            assert leads(old)  # or so it thinks
            with pytest.raises(NotLeading):
                await old.put_fenced(PLAN, b"too late")
            with pytest.raises(NotLeading):
                await old.delete_fenced(PLAN)
            answer, _ = await client.transact([fence], [transaction.put(PLAN, b"far too late")])
            assert not answer.succeeded
            await eventually(lambda: not old.leading, 3.0)  # the refusal told it
            assert new.leading
            await new.delete_fenced(PLAN)
    assert await client.get(PLAN) is None


async def test_a_leader_steps_down_by_its_own_clock(member: EtcdProcess) -> None:
    clock = ManualClock()
    async with (
        EtcdClient([member.endpoint]) as client,
        Election(client, ROLE, "p0", ttl_s=10, clock=clock) as election,
    ):
        await eventually(lambda: election.leading, 3.0)
        clock.advance(7.9)
        assert leads(election)
        clock.advance(0.2)
        assert not leads(election)  # at once, before any task has run
        with pytest.raises(NotLeading):
            await election.put_fenced(PLAN, b"")


async def test_etcd_frozen_longer_than_the_ttl(member: EtcdProcess) -> None:
    changes: list[bool] = []
    async with (
        EtcdClient([member.endpoint], timeout_s=0.5) as client,
        Election(client, ROLE, "p0", ttl_s=1) as election,
    ):
        election.on_change(lambda: changes.append(election.leading))
        await eventually(lambda: election.leading, 3.0)
        epoch = election.epoch
        member.freeze()
        try:
            await eventually(lambda: not election.leading, 3.0)
            await eventually(lambda: changes == [True, False], 3.0)
        finally:
            member.thaw()
        await eventually(lambda: election.leading, 6.0)
        assert election.epoch > epoch


async def test_three_members_lose_their_leader() -> None:
    async with (
        etcd_cluster(3) as members,
        EtcdClient([member.endpoint for member in members]) as client,
        Election(client, ROLE, "p0", ttl_s=2) as first,
        Election(client, ROLE, "p1", ttl_s=2) as second,
    ):
        await eventually(lambda: first.leading or second.leading, 3.0)
        (await leader_of(members)).kill()
        for _ in range(60):
            await asyncio.sleep(0.05)
            assert not (first.leading and second.leading)
        await eventually(lambda: first.leading or second.leading, 6.0)
