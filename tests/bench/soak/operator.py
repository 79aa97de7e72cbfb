"""What an operator, and who asks without generating, does during a soak: now and then a call, each known to succeed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from headrace.operations.v1 import operations_pb2 as ops
from headrace.operations.v1 import operations_pb2_grpc
from headrace.policy.v1 import policy_pb2
from tests.bench.soak import mix
from tests.bench.soak.doors import reason_of
from tests.bench.soak.mix import OK
from tests.bench.soak.rules import key
from tests.bench.soak.tally import Window

EVERY_S = 4.0
"""On the average."""
TIMEOUT_S = 20.0
SPARE = "soak-tool"
"""What is switched off and on: nobody uses it."""


class Operator:
    """Calls both services.

    Args:
        window: Where the results of the moment are counted.
    """

    def __init__(self, channel: aio.Channel, chance: random.Random, window: Callable[[], Window]) -> None:
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self._operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        self._chance = chance
        self._window = window
        self._actions = (
            self._explain, self._apply, self._switch, self._count, self._models,
            *(self._list(each) for each in ("Usage", "Queues", "Caches", "Executors", "Degradations", "Breakers")),
        )  # fmt: skip

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / EVERY_S))
            action = self._chance.choice(self._actions)
            try:
                await action()
                self._window().count("operator", OK)
            except aio.AioRpcError as error:
                result = reason_of(error)
                self._window().count("operator", result)
                self._window().wrong(f"operator: {result}: {error.details()}", counts=False)

    async def _ask(self, method: Any, request: Any) -> None:
        metadata = (("authorization", f"Bearer {key(mix.OPERATOR)}"),)
        await method(request, metadata=metadata, timeout=TIMEOUT_S)

    async def _explain(self) -> None:
        request = ops.ExplainRequest(request=mix.draw_answerable(self._chance), tenant=mix.ORDINARY[0])
        await self._ask(self._operations.Explain, request)

    async def _apply(self) -> None:
        """A tenant gets another weight; without keys it keeps its own."""
        weight = self._chance.choice((1.0, 2.0, 3.0))
        tenant = policy_pb2.Tenant(name=mix.ORDINARY[-1], weight=weight)
        await self._ask(self._operations.ApplyPolicy, ops.ApplyPolicyRequest(objects=[ops.PolicyObject(tenant=tenant)]))

    async def _switch(self) -> None:
        """Off and on."""
        switch = policy_pb2.Switch(kind=policy_pb2.SWITCH_KIND_TOOL, name=SPARE, reason="a soak")
        await self._ask(self._operations.PutSwitch, ops.PutSwitchRequest(switch=switch))
        await self._ask(self._operations.DeleteSwitch, ops.DeleteSwitchRequest(kind=switch.kind, name=switch.name))

    async def _count(self) -> None:
        request = pb.CountTokensRequest(model=mix.MODEL, prompt="How many tokens are in this water? " * 10)
        await self._ask(self._inference.CountTokens, request)

    async def _models(self) -> None:
        await self._ask(self._inference.ListModels, pb.ListModelsRequest(page_size=10))

    def _list(self, what: str) -> Callable[[], Awaitable[None]]:
        method, request = getattr(self._operations, f"List{what}"), getattr(ops, f"List{what}Request")
        return lambda: self._ask(method, request())
