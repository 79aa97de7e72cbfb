"""The batcher's rules, as operators write them into a real etcd."""

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from libs.lane.work import Tier
from libs.registry import EtcdClient, Registry, keys
from libs.tokens.blocks import chain, salt
from services.batcher.rule_source import RuleSource
from services.batcher.rules import TARGET_S
from services.batcher.scheduling import Dispatch, SchedulingRules
from tests.system.etcd import etcd, eventually


async def test_the_rules_follow_what_is_written() -> None:
    async with etcd() as process, EtcdClient([process.endpoint]) as client:
        registry = Registry(client)
        source = RuleSource(registry)
        await registry.put_message(keys.tier("async"), policy_pb2.TierPolicy(max_waiting=7))
        await source.start()
        assert source.tier(Tier.ASYNC).limits.works == 7
        assert source.tier(Tier.INTERACTIVE).target_s == TARGET_S[Tier.INTERACTIVE]
        assert source.scheduling("m") == SchedulingRules()
        assert source.pins("m@0") == ()

        turn = policy_pb2.Scheduling(dispatch=policy_pb2.DISPATCH_POLICY_ROUND_ROBIN)
        await registry.put_message(keys.scheduling("default"), turn)
        await eventually(lambda: source.scheduling("m").dispatch is Dispatch.ROUND_ROBIN, 5)
        await registry.put_message(keys.scheduling("m"), policy_pb2.Scheduling(max_pushes=5))
        await eventually(lambda: source.scheduling("m") == SchedulingRules(max_pushes=5), 5)
        assert source.scheduling("n").dispatch is Dispatch.ROUND_ROBIN, "the others have the default's"

        await registry.put_message(keys.pin("p"), policy_pb2.Pin(model="m", token_ids=range(20), copies=2))
        model = registry_pb2.Model(name="m", source="simulated:", block_tokens=16)
        pool = ModelSpec.from_proto(model).pool
        await registry.put_message(keys.model("m"), model)
        await eventually(lambda: len(source.pins(pool)) == 1, 5)
        (pin,) = source.pins(pool)
        assert (pin.name, pin.copies, list(pin.prefix.tokens)) == ("p", 2, list(range(16)))
        assert list(pin.prefix.hashes) == list(chain(range(16), 16, salt("m", "")))

        await registry.delete(keys.pin("p"))
        await registry.delete(keys.tier("async"))
        await eventually(lambda: not source.pins(pool), 5)
        await eventually(lambda: source.tier(Tier.ASYNC).limits.works > 7, 5)
        await source.close()
