"""The clients of a soak, as a process of their own: mixed requests at a rate, or so many at once.

Reads a Plan as JSON from stdin, and says a JSON object on stdout for every window. Ends at SIGTERM, or when its time is
over, once every request has ended.
"""

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop
from grpc import aio

from headrace.inference.v1 import inference_pb2_grpc
from libs.rpc.channels import CLIENT_OPTIONS
from tests.bench.soak import doors, mix
from tests.bench.soak.operator import Operator
from tests.bench.soak.rules import key
from tests.bench.soak.tally import Record, Window

SESSION_REQUESTS = (60, 240)
"""Of one Session, before its client opens another: from … to …."""
HANGS_S = 150.0
"""A request without end after so long hangs: its default deadline is over by then."""
MOST = 1024
"""In flight at a rate; who comes then is counted, and not sent."""
LAG_S = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    target: str
    seconds: float
    window_s: float
    seed: int
    rate: float = 0.0
    """Requests/s, arrivals by chance; 0: `flight` at once, who has an answer asks again."""
    flight: int = 0


class Clients:
    """All of them, on one connection to the mesh."""

    def __init__(self, plan: Plan, channel: aio.Channel) -> None:
        self._plan = plan
        self._channel = channel
        self._stub: doors.Stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._chance = random.Random(plan.seed)
        self._window = Window()
        self._carriers: dict[str, tuple[doors.Carrier, int]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until the time is up, or somebody ends it; then waits for what runs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._over.set)
        operator = Operator(self._channel, self._chance, self._window_now)
        watchers = [asyncio.create_task(each) for each in (self._tell(), self._watch(), operator.run())]
        begin = time.monotonic()
        at = begin
        while not self._over.is_set() and at < begin + self._plan.seconds:
            at = at + self._chance.expovariate(self._plan.rate) if self._plan.rate else time.monotonic() + 0.002
            if (ahead := at - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            most = MOST if self._plan.rate else self._plan.flight
            if len(self._running) < most:
                self._spawn(self._one(mix.draw(self._chance)))
            elif self._plan.rate:
                self._window.unsent += 1
        watchers[-1].cancel()
        for tenant in [*self._carriers]:
            self._retire(tenant)
        while self._running:
            await asyncio.wait(self._running)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _one(self, kind: mix.Kind) -> None:
        tenant = self._chance.choice(kind.tenants)
        door = "generate" if tenant == mix.STRANGER else self._chance.choice(("session", "generate"))
        record = Record(kind, kind.make(self._chance), door, time.monotonic())
        try:
            async with asyncio.timeout(HANGS_S):
                await self._send(record, tenant)
        except TimeoutError:
            record.end("it hangs", time.monotonic())
        self._window.add(record)

    async def _send(self, record: Record, tenant: str) -> None:
        if record.kind.manner == "vanishes":
            await self._vanish(record, tenant)
        elif record.door == "generate":
            await doors.generate(self._stub, key(tenant), record)
        elif record.kind.manner in ("slow", "stops"):
            carrier = doors.Carrier(self._stub, key(tenant))
            await carrier.ask(record)
            await self._close(carrier)
        else:
            await self._carrier(tenant).ask(record)

    async def _vanish(self, record: Record, tenant: str) -> None:
        """On a connection of its own, which breaks."""
        async with aio.insecure_channel(
            self._plan.target, options=[*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub: doors.Stub = inference_pb2_grpc.InferenceServiceStub(channel)
            if record.door == "generate":
                await doors.generate(stub, key(tenant), record)
                return
            carrier = doors.Carrier(stub, key(tenant))
            asked = asyncio.create_task(carrier.ask(record))
            await asyncio.wait([asked], timeout=self._chance.uniform(0.05, 0.6))
            await carrier.vanish()  # which ends the record
            asked.cancel()  # grpc.aio forgets a write that waits for the connection, when its call is cancelled
            await asyncio.wait([asked])

    def _carrier(self, tenant: str) -> doors.Carrier:
        carrier, most = self._carriers.get(tenant, (None, 0))
        if carrier is not None and carrier.carried < most:
            return carrier
        if carrier is not None:
            self._retire(tenant)
        carrier = doors.Carrier(self._stub, key(tenant))
        self._carriers[tenant] = carrier, self._chance.randint(*SESSION_REQUESTS)
        return carrier

    def _retire(self, tenant: str) -> None:
        carrier, _ = self._carriers.pop(tenant)
        self._spawn(self._close(carrier))

    async def _close(self, carrier: doors.Carrier) -> None:
        try:
            async with asyncio.timeout(HANGS_S):
                self._window.count("session", await carrier.close())
        except TimeoutError:
            self._window.count("session", "it hangs")
        for text in carrier.lost:
            self._window.wrong(text)

    def _window_now(self) -> Window:
        return self._window

    async def _tell(self) -> None:
        """Says every window, and what is left of the last one."""
        begin = time.monotonic(), time.process_time()
        try:
            while True:
                await asyncio.sleep(self._plan.window_s)
                begin = self._say(*begin)
        finally:
            self._say(*begin, last=True)

    def _say(self, begin: float, used_s: float, *, last: bool = False) -> tuple[float, float]:
        window, self._window = self._window, Window()
        now, used_now_s = time.monotonic(), time.process_time()
        seconds = max(now - begin, 0.001)
        window.cores = (used_now_s - used_s) / seconds
        print(json.dumps({"last": last, **window.summary(seconds, len(self._running))}), flush=True)
        return now, used_now_s

    async def _watch(self) -> None:
        """How late this process is itself."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_S)
            late_ms = (time.monotonic() - before - LAG_S) * 1000
            self._window.late_ms = max(self._window.late_ms, late_ms)


async def run(plan: Plan) -> None:
    """Connects, and runs the clients."""
    async with aio.insecure_channel(plan.target, options=CLIENT_OPTIONS) as channel:
        await channel.channel_ready()
        await Clients(plan, channel).run()


def main() -> None:
    """Entry point."""
    uvloop.run(run(Plan(**json.loads(sys.stdin.readline()))))


if __name__ == "__main__":
    main()
