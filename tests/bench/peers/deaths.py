"""What becomes of running streams when one of two engines is killed (kill -9), and of the requests behind them.

The busier one is killed: a router that keeps a prefix together may have sent all streams to one of them.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import aiohttp
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from tests.bench.peers.phases import MARK
from tests.bench.peers.processes import cpu_s
from tests.bench.peers.systems.headrace import Headrace
from tests.bench.peers.systems.http_engines import DEATH_STEP_US, Proxy
from tests.bench.peers.systems.system import HOST, HttpSystem, System
from tests.system.client import BOTH, Answer, connect

STREAMS, TOKENS, LATER, LATER_TOKENS = 32, 256, 20, 4
BEFORE_DEATH = 16
"""Tokens that every stream has, so that all are under way."""
BEFORE_DEATH_S = 20.0
"""After them it happens anyway."""
PAUSE_S, POLL_S = 0.1, 0.02
PATIENCE_S = 40.0


@dataclass(slots=True)
class Stream:
    """What a client saw of one answer."""

    pieces: list[object] = field(default_factory=list)
    """Its tokens: texts, or ids."""
    times: list[float] = field(default_factory=list)
    ended: bool = False
    """As an answer should."""
    error: str = ""
    """What it was told; empty when the stream just stopped."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Death:
    """How the streams ended, and how the requests behind them."""

    system: str
    streams: int
    complete: int
    """All tokens, in order, where the order can be known."""
    wrong: int
    """Ended as answers should, with tokens lost or repeated."""
    failed: int
    """With an error."""
    cut: int
    """Without a word."""
    gap_ms: float
    """The longest pause of a complete stream."""
    checked: bool
    """Whether the tokens themselves could be compared."""
    later: int
    later_answered: int
    later_slowest_ms: float
    error: str
    """One of them."""


Ask = Callable[[int, int, Stream], Coroutine[None, None, None]]
"""One request: its number, the tokens wanted, and where what comes is put."""


async def kill_one(system: System, name: str) -> Death:
    """Streams, a death, and what follows."""
    if isinstance(system, Headrace):
        async with connect(*system.target) as client:

            async def ask(number: int, tokens: int, into: Stream) -> None:
                request = system.request("generate_ids", DEATH_STEP_US)
                request.chat.messages[1].content = request.chat.messages[1].content.replace(MARK, f"{number:08d}")
                request.sampling.CopyFrom(pb.Sampling(max_tokens=tokens, ignore_end=True, temperature=0))
                request.output_form = BOTH
                await _generate(client.generate, request, into)

            undisturbed = await _all(ask)
            return await _observe(system, name, ask, [stream.pieces for stream in undisturbed])
    assert isinstance(system, HttpSystem)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        numbered: list[object] = [f" {position}" for position in range(TOKENS)]
        expected = [numbered] * STREAMS if isinstance(system, Proxy) else None
        return await _observe(
            system, name, lambda number, tokens, into: _events(session, system, number, tokens, into), expected
        )


async def _all(ask: Ask, under_way: Callable[[], None] | None = None) -> list[Stream]:
    """All streams at once; calls `under_way`, in a thread, when each has BEFORE_DEATH tokens."""
    streams = [Stream() for _ in range(STREAMS)]
    async with asyncio.TaskGroup() as group:
        for number, stream in enumerate(streams):
            group.create_task(ask(number, TOKENS, stream))
        if under_way is not None:
            end = time.monotonic() + BEFORE_DEATH_S
            while time.monotonic() < end and min(len(stream.pieces) for stream in streams) < BEFORE_DEATH:
                await asyncio.sleep(POLL_S)
            await asyncio.to_thread(under_way)
    return streams


async def _observe(system: System, name: str, ask: Ask, expected: Sequence[Sequence[object]] | None) -> Death:
    for number in range(4):  # connections are made, prefixes are known
        await ask(1000 + number, LATER_TOKENS, Stream())
    engines = system.engine_pids()
    before = [cpu_s(pids) for pids in engines]

    def kill_busiest() -> None:
        system.kill_engine(max(range(len(engines)), key=lambda index: cpu_s(engines[index]) - before[index]))

    streams = await _all(ask, kill_busiest)
    later = [Stream() for _ in range(LATER)]
    for number, stream in enumerate(later):
        await ask(2000 + number, LATER_TOKENS, stream)
        await asyncio.sleep(PAUSE_S)
    right = [
        stream.ended and (stream.pieces == list(expected[number]) if expected else len(stream.pieces) >= TOKENS - 2)
        for number, stream in enumerate(streams)
    ]
    complete = [stream for stream, well in zip(streams, right, strict=True) if well]
    errors = [stream.error for stream in [*streams, *later] if stream.error]
    found = Death(
        name, STREAMS, len(complete), sum(stream.ended for stream in streams) - len(complete),
        sum(not stream.ended and bool(stream.error) for stream in streams),
        sum(not stream.ended and not stream.error for stream in streams),
        max((_gap_ms(stream) for stream in complete), default=0.0), expected is not None, LATER,
        sum(stream.ended for stream in later), max(stream.seconds for stream in later) * 1000, "",
    )  # fmt: skip
    return replace(found, error=errors[0][:200]) if errors else found


def _gap_ms(stream: Stream) -> float:
    gaps = [later - earlier for earlier, later in zip(stream.times, stream.times[1:], strict=False)]
    return max(gaps, default=0.0) * 1000


async def _generate(call: Callable[..., Awaitable[Answer]], request: pb.GenerateRequest, into: Stream) -> None:
    begin = time.monotonic()
    answer = Answer(token_ids=cast(list[int], into.pieces), times=into.times)
    try:
        await call(request, timeout_s=PATIENCE_S, into=answer)
    except aio.AioRpcError as raised:
        into.error = f"{raised.code().name}: {raised.details()}"
    into.ended = answer.finish is not None
    into.seconds = time.monotonic() - begin


async def _events(session: aiohttp.ClientSession, system: HttpSystem, number: int, tokens: int, into: Stream) -> None:
    begin = time.monotonic()
    body = json.dumps(system.request(tokens)).replace(MARK, f"{number:08d}")
    headers = {"content-type": "application/json", "authorization": "Bearer bench"}
    url = f"http://{HOST}:{system.port}/v1/chat/completions"
    try:
        async with asyncio.timeout(PATIENCE_S), session.post(url, data=body, headers=headers) as answer:
            if answer.status != 200:
                into.error = f"{answer.status}: {await answer.text()}"
            else:
                async for line in answer.content:
                    _line(into, line.strip().removeprefix(b"data: "))
    except aiohttp.ClientPayloadError:
        pass  # cut off: nobody said anything
    except (aiohttp.ClientError, TimeoutError) as raised:
        into.error = f"{type(raised).__name__}: {raised}"
    into.seconds = time.monotonic() - begin


def _line(stream: Stream, data: bytes) -> None:
    if data == b"[DONE]":
        stream.ended = not stream.error
    elif data.startswith(b"{"):
        event = json.loads(data)
        if "error" in event:
            stream.error = json.dumps(event["error"])
        for choice in event.get("choices") or []:
            if text := (choice.get("delta") or {}).get("content"):
                stream.pieces.append(text)
                stream.times.append(time.monotonic())
