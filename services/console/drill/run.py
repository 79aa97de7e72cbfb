"""A drill from its first request to the moment when nothing is given up any more."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from headrace.inference.v1 import inference_pb2
from headrace.operations.v1 import operations_pb2 as pb
from libs.client import HeadraceClient, HeadraceError
from services.console.drill import judge
from services.console.drill.guard import Guard, Look
from services.console.drill.load import ONCE, Load
from services.console.drill.others import Others
from services.console.drill.ramp import Ramp
from services.console.drill.series import per_second
from services.console.drill.values import VERSION, Order, Result, Sample, Sent
from services.console.operations import Operations

SAMPLE_S = 0.2
LOOK_S = 1.0
BLIND = 5
"""Looks in a row that may fail."""
SETTLE_S = 20.0
"""For which levels are waited for beyond what their ladder takes."""
TIERS = {"interactive": inference_pb2.TIER_INTERACTIVE, "async": inference_pb2.TIER_ASYNC}


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the mesh is, and who asks."""

    target: str
    key: str
    """Of an operator; its tenant sends the load."""
    operators: frozenset[str]
    """Names of the tenants that operate: the one whose key it is, and those that are not to be spared."""
    protected_key: str = ""


class Drill:
    """One drill. `told` is called with each sample, for whoever watches."""

    def __init__(self, order: Order, doors: Doors, told: Callable[[Sample, int], None]) -> None:
        self._order = order
        self._doors = doors
        self._told = told
        self._samples: list[Sample] = []
        self._start = 0.0
        self._ramp = Ramp(order)

    async def run(self, command: str) -> Result:
        """Runs it. Raises HeadraceError when the mesh cannot be asked before it begins."""
        order, doors = self._order, self._doors
        async with AsyncExitStack() as stack:
            operations = await stack.enter_async_context(Operations(doors.target, doors.key))
            client = await stack.enter_async_context(
                HeadraceClient(doors.target, api_key=doors.key, max_running=order.bounds.in_flight, retry=ONCE)
            )
            session = await stack.enter_async_context(client.session())
            spared = None
            if doors.protected_key:
                spared = HeadraceClient(doors.target, api_key=doors.protected_key, retry=ONCE)
                await stack.enter_async_context(spared)
            services = await operations.every("ListServices", pb.ListServicesRequest(), "services")
            others = await stack.enter_async_context(Others(operations, doors.key, services, doors.operators))
            guard = Guard(order.bounds, await self._look(operations, others))
            began, self._start = time.time(), time.monotonic()
            load = Load(order, session, spared, guard, self._clock, self._level)
            watcher = asyncio.create_task(self._watch(operations, others, guard, load), name="drill watcher")
            try:
                await load.run(self._ramp)
                stopped = guard.why or self._ramp.over(self._clock()) or ""
                self._ramp.stop()
                if guard.why:
                    await load.cancel()
                else:
                    await load.drained()
                await self._recover()
            finally:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
                await load.cancel()
        return self._result(command, began, stopped, guard, load.sent, spared is not None)

    def _clock(self) -> float:
        return time.monotonic() - self._start

    def _level(self) -> int:
        return self._samples[-1].level if self._samples else 0

    async def _watch(self, operations: Operations, others: Others, guard: Guard, load: Load) -> None:
        """Samples the ladder, and looks at the rest of the mesh, until it is cancelled."""
        failed, looked_at = 0, self._clock()
        while True:
            try:
                now = self._clock()
                sample = await self._sample(operations)
                if now >= looked_at + LOOK_S:
                    looked_at = now
                    guard.look(await self._look(operations, others, load.spared_refused))
                failed = 0
            except HeadraceError as error:
                failed += 1
                if failed >= BLIND:
                    guard.blind(error.message)
            else:
                self._ramp.follow(sample.level, sample.at)
                self._samples.append(sample)
                self._told(sample, len(load.sent))
            await asyncio.sleep(max(SAMPLE_S - (self._clock() - now), 0.02))

    async def _sample(self, operations: Operations) -> Sample:
        answer: pb.ListDegradationsResponse = await operations.ask("ListDegradations", pb.ListDegradationsRequest())
        states = {state.tier: state for state in answer.ladders if state.model == self._order.base}
        deferred = states.get(TIERS["async"], pb.LadderState()).wait
        own = states.get(TIERS[self._order.tier], pb.LadderState())
        at = self._clock()
        return Sample(
            at, own.level, own.saturation, own.wait, own.blocks, own.refused, deferred, round(self._ramp.per_s, 2)
        )

    async def _look(self, operations: Operations, others: Others, own: int = 0) -> Look:
        """`own`: what the drill itself asked as another tenant, and was refused."""
        services = await operations.every("ListServices", pb.ListServicesRequest(), "services")
        executors = await operations.every("ListExecutors", pb.ListExecutorsRequest(), "executors")
        refused = await others.refused()
        return Look(
            frozenset(each.instance for each in [*services, *executors]), None if refused is None else refused - own
        )

    async def _recover(self) -> None:
        """Waits until nothing is given up any more, as long as that may take."""
        order = self._order
        end = self._clock() + (len(order.ladder) + 1) * order.recover_s + SETTLE_S
        while self._level() and self._clock() < end:
            await asyncio.sleep(SAMPLE_S)
        await asyncio.sleep(2 * SAMPLE_S)

    def _result(
        self, command: str, began: float, stopped: str, guard: Guard, sent: Sequence[Sent], protected: bool
    ) -> Result:
        order, samples = self._order, self._samples
        return Result(
            version=VERSION,
            began=began,
            seconds=round(self._clock(), 1),
            command=command,
            order=order,
            stopped=stopped,
            aborted=bool(guard.why),
            rungs=judge.rungs(order, samples, sent),
            checks=[*judge.ladder(order, samples, sent, protected), judge.others(guard.others_refused)],
            sent=len(sent),
            answered=sum(each.answered for each in sent),
            refused=sum(each.refused for each in sent),
            failed=sum(bool(each.error) and not each.refused for each in sent),
            samples=samples,
            per_second=per_second(sent),
        )
