"""What becomes of running streams when one of two engines is killed (kill -9), and of the requests behind them.

The busier one is killed: a router that keeps a prefix together may have sent all streams to one of them.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace

import aiohttp
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from tests.bench.peers.phases import MARK
from tests.bench.peers.processes import cpu_s
from tests.bench.peers.systems.headrace import Headrace
from tests.bench.peers.systems.http_engines import DEATH_STEP_US, Proxy
from tests.bench.peers.systems.system import HOST, HttpSystem, System
from tests.system.client import BOTH, Answer, connect

STREAMS, TOKENS, LATER, LATER_TOKENS = 32, 128, 20, 4
BEFORE_DEATH_S = 1.0
PAUSE_S = 0.1
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


Ask = Callable[[int, int], Coroutine[None, None, Stream]]
"""One request: its number, and the tokens wanted."""


async def kill_one(system: System, name: str) -> Death:
    """Streams, a death, and what follows."""
    if isinstance(system, Headrace):
        async with connect(*system.target) as client:

            async def ask(number: int, tokens: int) -> Stream:
                request = system.request("generate_ids", DEATH_STEP_US)
                request.chat.messages[1].content = request.chat.messages[1].content.replace(MARK, f"{number:08d}")
                request.sampling.CopyFrom(pb.Sampling(max_tokens=tokens, ignore_end=True, temperature=0))
                request.output_form = BOTH
                return await _generate(client.generate, request)

            undisturbed = await asyncio.gather(*(ask(number, TOKENS) for number in range(STREAMS)))
            return await _observe(system, name, ask, [stream.pieces for stream in undisturbed])
    assert isinstance(system, HttpSystem)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        numbered: list[object] = [f" {position}" for position in range(TOKENS)]
        expected = [numbered] * STREAMS if isinstance(system, Proxy) else None
        return await _observe(system, name, lambda number, tokens: _events(session, system, number, tokens), expected)


async def _observe(system: System, name: str, ask: Ask, expected: Sequence[Sequence[object]] | None) -> Death:
    for number in range(4):  # connections are made, prefixes are known
        await ask(1000 + number, LATER_TOKENS)
    engines = system.engine_pids()
    before = [cpu_s(pids) for pids in engines]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(number, TOKENS)) for number in range(STREAMS)]
        await asyncio.sleep(BEFORE_DEATH_S)
        busiest = max(range(len(engines)), key=lambda index: cpu_s(engines[index]) - before[index])
        await asyncio.to_thread(system.kill_engine, busiest)
        streams = await asyncio.gather(*tasks)
    later = []
    for number in range(LATER):
        later.append(await ask(2000 + number, LATER_TOKENS))
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


async def _generate(call: Callable[..., Awaitable[Answer]], request: pb.GenerateRequest) -> Stream:
    begin, answer, error = time.monotonic(), Answer(), ""
    try:
        await call(request, timeout_s=PATIENCE_S, into=answer)
    except aio.AioRpcError as raised:
        error = f"{raised.code().name}: {raised.details()}"
    return Stream(list(answer.token_ids), answer.times, answer.finish is not None, error, time.monotonic() - begin)


async def _events(session: aiohttp.ClientSession, system: HttpSystem, number: int, tokens: int) -> Stream:
    begin, stream = time.monotonic(), Stream()
    body = json.dumps(system.request(tokens)).replace(MARK, f"{number:08d}")
    headers = {"content-type": "application/json", "authorization": "Bearer bench"}
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            session.post(f"http://{HOST}:{system.port}/v1/chat/completions", data=body, headers=headers) as answer,
        ):
            if answer.status != 200:
                stream.error = f"{answer.status}: {await answer.text()}"
            else:
                async for line in answer.content:
                    _line(stream, line.strip().removeprefix(b"data: "))
    except aiohttp.ClientPayloadError:
        pass  # cut off: nobody said anything
    except (aiohttp.ClientError, TimeoutError) as raised:
        stream.error = f"{type(raised).__name__}: {raised}"
    stream.seconds = time.monotonic() - begin
    return stream


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
