"""Requests for one token each, closed loop or open: how long each takes. Runs as a process of its own.

Says "begin" and "end" around the measured time, then one JSON object. In the open loop requests come by chance at a
rate (Poisson), and a request's time counts from when it was due: a client that is late hides nothing.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import uvloop
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from libs.rpc.channels import CLIENT_OPTIONS

WARM_S = 1.0
ONE_TOKEN = pb.Sampling(max_tokens=1, ignore_end=True)


@dataclass(slots=True)
class Tally:
    """What was seen."""

    times_ms: list[float] = field(default_factory=list)
    errors: int = 0


def request(number: int) -> pb.GenerateRequest:
    """A request with a prompt of its own, of about 25 tokens."""
    return pb.GenerateRequest(
        model="stub",
        prompt=f"Request {number:07} of a benchmark: how deep is the river at the mill today, and who measured it?",
        sampling=ONE_TOKEN,
        output_form=pb.OUTPUT_FORM_TOKEN_IDS,
    )


class Generates:
    """Each request is a call of its own."""

    def __init__(self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", key: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def ask(self, number: int) -> bool:
        """Whether it was answered."""
        call = self._stub.Generate(request(number), metadata=self._metadata)
        try:
            finished = False
            while (response := await call.read()) is not aio.EOF:
                finished = finished or response.HasField("finish")  # type: ignore[attr-defined]
            return finished
        except aio.AioRpcError:
            return False

    async def close(self) -> None:
        """Nothing is open."""


class Sessions:
    """All requests on one stream; those that come together are written together."""

    def __init__(self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", key: str) -> None:
        self._call = stub.Session(metadata=(("authorization", f"Bearer {key}"),))
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._unsent: list[pb.SessionGenerate] = []
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def ask(self, number: int) -> bool:
        """Whether it was answered."""
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._unsent.append(pb.SessionGenerate(id=number, request=request(number)))
        self._wake.set()
        return await self._waiting[number]

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            unsent, self._unsent = self._unsent, []
            await self._call.write(pb.SessionRequest(generates=unsent))

    async def _read(self) -> None:
        while (response := await self._call.read()) is not aio.EOF:
            for end in response.ends:  # type: ignore[attr-defined]
                if not (waiting := self._waiting.pop(end.id)).done():
                    waiting.set_result(end.HasField("finish"))

    async def close(self) -> None:
        """Ends the stream."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()


async def closed(ask: Callable[[int], Awaitable[bool]], flight: int, tally: Tally) -> None:
    """So many requests in flight, for ever."""
    numbers = iter(range(1, 10**9))

    async def worker() -> None:
        for number in numbers:
            began = time.perf_counter()
            done = await ask(number)
            tally.times_ms.append((time.perf_counter() - began) * 1000)
            tally.errors += not done

    async with asyncio.TaskGroup() as group:
        for _ in range(flight):
            group.create_task(worker())


async def opened(ask: Callable[[int], Awaitable[bool]], per_s: float, tally: Tally) -> None:
    """So many requests a second, for ever."""
    chance, number, due = random.Random(5), 0, time.perf_counter()

    async def one(number: int, due: float) -> None:
        done = await ask(number)
        tally.times_ms.append((time.perf_counter() - due) * 1000)
        tally.errors += not done

    async with asyncio.TaskGroup() as group:
        while True:
            due += chance.expovariate(per_s)
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            number += 1
            group.create_task(one(number, due))


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Warms up, then counts."""
    tally = Tally()
    async with aio.insecure_channel(arguments.target, options=CLIENT_OPTIONS) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        door = (Sessions if arguments.door == "session" else Generates)(stub, arguments.key)
        if arguments.per_s:
            loop = asyncio.create_task(opened(door.ask, arguments.per_s, tally))
        else:
            loop = asyncio.create_task(closed(door.ask, arguments.flight, tally))
        await asyncio.sleep(WARM_S)
        print("begin", flush=True)
        tally.times_ms, tally.errors, began = [], 0, time.perf_counter()
        await asyncio.sleep(arguments.seconds)
        seconds, times, errors = time.perf_counter() - began, sorted(tally.times_ms), tally.errors
        print("end", flush=True)
        loop.cancel()
        await door.close()
        await asyncio.gather(loop, return_exceptions=True)
    return {
        "requests": len(times),
        "errors": errors,
        "per_s": len(times) / seconds,
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[int(len(times) * 0.99)],
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--door", choices=("generate", "session"), required=True)
    parser.add_argument("--flight", type=int, default=1)
    parser.add_argument("--per-s", type=float, default=0.0, help="open loop at this rate")
    parser.add_argument("--seconds", type=float, default=4.0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
