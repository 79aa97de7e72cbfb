"""From a batcher's queue to another process's ladder, through a real etcd."""

from collections.abc import Sequence

from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from libs.clock import ManualClock
from libs.lane.work import Tier
from libs.registry import EtcdClient, Registry, keys
from services.admission.ladder import Ladders
from services.admission.policy import Policy, Rung, TierPolicy
from services.admission.saturation_source import STALE_S, SaturationSource
from services.batcher.asked import Demand
from services.batcher.demand_report import EVERY_S, LOOK_S, SOON_S, DemandReport
from services.batcher.saturation import Saturation
from tests.system.etcd import EtcdProcess, etcd, eventually

POLICY = Policy(
    models={"m": ModelSpec("m", "simulated:", 4096, 100, 16, 8, 512)},
    tiers={Tier.INTERACTIVE: TierPolicy(ladder=[Rung("short", 0.5, clamp_output_tokens=9)], recover_s=1.0)},
)


class Rig:
    """A batcher's report, on a clock that a test moves, and ladders that follow it."""

    def __init__(self, process: EtcdProcess, client: EtcdClient) -> None:
        self.clock = ManualClock()
        self.wait = 0.0
        self.requests = 0
        self.client = client
        self.registry = Registry(client)
        self.report = DemandReport(self.registry, "batcher-1", self._look, self.clock)
        self.mirror = self.registry.mirror(keys.DEMAND, registry_pb2.Demand)
        self.ladders = Ladders(lambda: POLICY)
        self.source = SaturationSource(self.mirror, self.ladders, self.clock)
        self.process = process
        self.news = 0
        self.mirror.on_change(self._changed)

    async def tick(self, seconds: float = LOOK_S) -> bool:
        """Moves on; whether that wrote anything."""
        before = self.report._said
        self.clock.advance(seconds)
        self.report.tick()
        await self.report._announcement.settled()
        return self.report._said is not before

    def level(self) -> int:
        return self.ladders.effects("m", Tier.INTERACTIVE, False, self.clock.monotonic()).level

    def _look(self) -> Sequence[Demand]:
        self.requests += 1
        seen = [Saturation(Tier.INTERACTIVE, 1, self.wait, 0.9), Saturation(Tier.ASYNC)]
        return [Demand("m", self.requests, 1, 1, 0.0, 0.0, 0.0, seen)]

    def _changed(self) -> None:
        self.news += 1
        self.source.tick()


async def test_a_rise_is_told_at_once_and_everything_else_once_a_second() -> None:
    async with etcd() as process, EtcdClient([process.endpoint]) as client:
        rig = Rig(process, client)
        await rig.report.start()
        async with rig.mirror:
            assert await rig.tick()
            quiet = [await rig.tick() for _ in range(9)]
            assert not any(quiet), "requests come and go, that can wait"
            assert await rig.tick(EVERY_S - 0.8)

            rig.wait = 0.6
            told = [await rig.tick() for _ in range(3)]
            assert told.index(True) * LOOK_S <= SOON_S
            await eventually(lambda: rig.level() == 1, 5)

            writes = 0
            for _ in range(40):
                rig.wait += 0.1
                writes += await rig.tick()
            assert 10 <= writes <= 40 * LOOK_S / SOON_S, "four a second at most, however it rises"

            rig.wait = 0.0
            assert sum([await rig.tick() for _ in range(10)]) == 1, "a fall may take a second"
        await rig.report.close()


async def test_a_model_without_a_copy_is_told_of_at_once() -> None:
    async with etcd() as process, EtcdClient([process.endpoint]) as client:
        rig = Rig(process, client)
        await rig.report.start()
        await rig.tick()
        rig.clock.advance(SOON_S)
        before = rig.report._said
        rig.report.starved()
        assert (first := rig.report._said) is not before
        rig.report.starved()
        assert rig.report._said is first, "no more than four times a second"
        assert [await rig.tick() for _ in range(3)] == [False, False, True], "but then without waiting for the second"
        await rig.report.close()


async def test_what_a_batcher_said_is_not_believed_for_ever() -> None:
    async with etcd() as process, EtcdClient([process.endpoint]) as client:
        rig = Rig(process, client)
        await rig.report.start()
        rig.wait = 0.9
        async with rig.mirror:
            await rig.tick()
            await eventually(lambda: rig.level() == 1, 5)
            process.kill()
            await eventually(lambda: rig.mirror.stale_since is not None, 10)
            stale = rig.mirror.stale_since
            assert stale is not None
            rig.clock.advance(max(stale + STALE_S + 1 - rig.clock.now(), 0.0))
            rig.source.tick()
            assert rig.level() == 1
            rig.clock.advance(1.0)
            rig.source.tick()
            assert rig.level() == 0
        await rig.report.close()
