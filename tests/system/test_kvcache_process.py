"""The KV-cache manager's real process beside a real etcd: killed and whole again, its policies read as it runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import aio

from headrace.kvcache.v1 import kvcache_pb2 as pb
from headrace.kvcache.v1 import kvcache_pb2_grpc
from headrace.policy.v1 import policy_pb2
from libs.kvcache.consult import Consultation
from libs.kvcache.manager import ManagerChoice
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.report import Reporter
from libs.kvcache.values import Answer, BlockEvent, CacheInfo, CacheState, Exactness, Question
from libs.registry import keys
from libs.registry.registry import Registry
from libs.rpc.channels import Channels
from libs.settings import Etcd
from libs.streams.client import Dialer
from tests.system.etcd import etcd
from tests.system.kvcache_process import ManagerProcess

POOL = "m@1"
EXECUTORS, BLOCKS = 10, 10_000
PATIENCE_S = 10.0


class Executor:
    """The report of one executor, over a connection of its own."""

    def __init__(self, number: int, manager: ManagerChoice) -> None:
        self.blocks = range(number * BLOCKS + 1, (number + 1) * BLOCKS + 1)
        self._mirror = CacheMirror(CacheInfo(POOL, BLOCKS, 16, Exactness.EXACT))
        self._mirror.apply([BlockEvent("stored", self.blocks)])
        self.reporter = Reporter(f"e{number}", self._snapshot, Dialer(), manager.endpoint)

    def _snapshot(self) -> Sequence[CacheState]:
        return [self._mirror.state()]

    async def close(self) -> None:
        await self.reporter.close()


@dataclass
class Scene:
    """A manager and its clients."""

    manager: ManagerProcess
    registry: Registry
    executors: list[Executor]
    batcher: Consultation
    stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub"

    async def caches(self) -> list[pb.Cache]:
        try:
            answer = await self.stub.ListCaches(pb.ListCachesRequest(), wait_for_ready=True, timeout=PATIENCE_S)
        except aio.AioRpcError:  # it was killed a moment ago, and the channel has not heard of that
            return []
        return list(answer.caches)

    async def ask(self, question: Question) -> Answer:
        """The answer of a manager that may be on its way back."""
        deadline = time.monotonic() + PATIENCE_S
        while (answer := await self.batcher.answer(question)) is None:
            assert time.monotonic() < deadline, f"no answer:\n{self.manager.log()}"
            await asyncio.sleep(0.01)
        return answer

    async def whole(self) -> None:
        """Waits for all blocks to be there; questions are answered meanwhile."""
        asked, prompt = 1_000_000, self.executors[-1].blocks[:512]
        deadline = time.monotonic() + 30
        while sum(cache.indexed for cache in await self.caches()) < EXECUTORS * BLOCKS:
            assert time.monotonic() < deadline, f"not whole:\n{self.manager.log()}"
            await self.ask(Question(asked, POOL, prompt))
            asked += 1


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with etcd() as member, Registry.from_settings(Etcd((member.endpoint,))) as registry:
        manager = ManagerProcess(tmp_path, member.endpoint)
        manager.start()
        choice, channels = ManagerChoice(registry), Channels()
        await choice.start()
        executors = [Executor(number, choice) for number in range(EXECUTORS)]
        batcher = Consultation("batcher-1", Dialer(), choice.endpoint, PATIENCE_S)
        stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(
            channels.connect(manager.endpoint)
        )
        try:
            yield Scene(manager, registry, executors, batcher, stub)
        finally:
            await batcher.close()
            for executor in executors:
                await executor.close()
            await channels.close()
            await choice.close()
            manager.kill()


async def test_a_manager_that_is_killed_is_whole_again_and_knows_what_is_reserved(scene: Scene) -> None:
    await scene.whole()
    prompt = scene.executors[3].blocks[:512]
    before = await scene.ask(Question(1, POOL, prompt, "e3", 600))
    assert (before.matched("e3"), before.reserved, before.free_blocks) == (512, True, BLOCKS - 600)
    scene.manager.kill()
    scene.manager.start()
    await scene.whole()
    after = await scene.ask(Question(2, POOL, prompt, "e3", BLOCKS - 600))
    assert (after.matched("e3"), after.reserved, after.free_blocks) == (512, True, 0)
    scene.batcher.release(1, found_blocks=512)
    assert await scene.ask(Question(3, POOL, prompt, "e3", 601)) == Answer(after.matches, False, 600)


async def test_an_overcommit_is_read_while_it_runs(scene: Scene) -> None:
    await scene.whole()
    estimate = policy_pb2.RESERVE_POLICY_ESTIMATE
    for name, factor, free in (("default", 1.1, 11_000), ("m", 1.5, 15_000), ("m", 0.0, 10_000)):
        policy = policy_pb2.Scheduling(name=name, reserve=estimate, overcommit=factor)
        await scene.registry.put_message(keys.scheduling(name), policy)
        await until_free(scene, free)
    await scene.registry.delete(keys.scheduling("m"))
    await until_free(scene, 11_000)


async def until_free(scene: Scene, blocks: int) -> None:
    number, deadline = 100, time.monotonic() + PATIENCE_S
    while True:
        answer = await scene.ask(Question(number, POOL, (), "e0", BLOCKS * 10))
        if answer.free_blocks == blocks:
            return
        assert time.monotonic() < deadline, answer
        number += 1
        await asyncio.sleep(0.02)
