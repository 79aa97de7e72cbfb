"""Requests of several tenants, open loop or closed, on a Session for each. Runs as a process of its own.

Reads a Plan as JSON from stdin, says `begin` and `end` on stdout, and then one JSON object: what became of each
request, and when the process itself was late, so that a slow client is not taken for a slow mesh.

Open loop: Poisson arrivals at a tenant's rate, whatever becomes of them, and whatever RetryInfo says: who is refused
comes no more, others do. Closed loop: so many requests in flight; who is refused comes back when RetryInfo says.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import uvloop
from google.rpc import error_details_pb2
from grpc import aio

from headrace.inference.v1 import inference_pb2, inference_pb2_grpc
from libs.rpc.channels import CLIENT_OPTIONS

LAG_S = 0.005
"""Between two looks at how late the process is."""
GRACE_S = 90.0
"""After the last arrival, until everything has its answer."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who sends, and how much."""

    name: str
    key: str
    per_s: float = 0.0
    """Open loop, if above 0."""
    flight: int = 0
    """Closed loop, if above 0."""
    patient: bool = False
    """Async."""
    from_s: float = 0.0
    """When it begins."""
    prompts: tuple[int, int] = (100, 500)
    """Words of a prompt, about as many tokens: uniform from … to …."""
    answers: tuple[int, int] = (40, 120)
    """Tokens of an answer, which never ends by itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send."""

    target: str
    model: str
    tenants: Sequence[Tenant]
    seconds: float
    seed: int = 0
    drain: bool = True
    """Whether to wait for the last answers."""


@dataclass(slots=True)
class Request:
    """One request, in seconds since the plan began."""

    tenant: str
    patient: bool
    prompt: int
    sent: float
    first: float = -1.0
    ended: float = -1.0
    queued: float = 0.0
    """In the batcher's queue, as the answer says."""
    tokens: int = 0
    prompt_tokens: int = 0
    """As the answer says; 0 while it has no end."""
    code: int = -1
    """0 when it was answered; -1 while it has no end."""
    retry: float = -1.0
    """Seconds of RetryInfo; -1 when there was none."""
    message: str = ""


@dataclass(slots=True)
class Seen:
    """All of it."""

    requests: list[Request] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    """When the process was late, and by how much."""


async def send(stub: "inference_pb2_grpc.InferenceServiceAsyncStub", plan: Plan, tenant: Tenant, seen: Seen) -> None:
    """All requests of one tenant, on one stream."""
    call = stub.Session(metadata=(("authorization", f"Bearer {tenant.key}"),))
    chance = random.Random(f"{plan.seed} {tenant.name} {tenant.patient} {tenant.from_s}")
    start, own = time.perf_counter(), list[Request]()
    more = asyncio.Queue[float]()
    """Closed loop: when the next one is to be sent."""

    def make(now: float) -> inference_pb2.SessionGenerate:
        words, tokens = chance.randint(*tenant.prompts), chance.randint(*tenant.answers)
        own.append(Request(tenant.name, tenant.patient, words, now))
        request = inference_pb2.GenerateRequest(
            model=plan.model,
            prompt=f"{chance.random()} {tenant.name} {plan.seed} {len(own)}: " + "water " * words,
            sampling=inference_pb2.Sampling(max_tokens=tokens, ignore_end=True),
            output_form=inference_pb2.OUTPUT_FORM_TOKEN_IDS,
            tier=inference_pb2.TIER_ASYNC if tenant.patient else inference_pb2.TIER_INTERACTIVE,
        )
        return inference_pb2.SessionGenerate(id=len(own) - 1, request=request)

    async def write() -> None:
        at = tenant.from_s
        for _ in range(tenant.flight):
            more.put_nowait(at)
        while True:
            at = at + chance.expovariate(tenant.per_s) if tenant.per_s else await more.get()
            if at > plan.seconds:
                break
            if (ahead := start + at - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            now = time.perf_counter() - start
            if now > plan.seconds:
                break
            await call.write(inference_pb2.SessionRequest(generates=[make(now)]))
        await call.done_writing()

    def end(request: Request, ended: inference_pb2.SessionEnd, now: float) -> None:
        request.ended = now
        if ended.HasField("finish"):
            request.code, queued = 0, ended.finish.timings.queued
            request.queued = queued.seconds + queued.nanos / 1e9
            request.prompt_tokens = ended.finish.usage.prompt_tokens
        else:
            request.code, request.message = ended.failure.code, ended.failure.message
            for detail in ended.failure.details:
                info = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    request.retry = info.retry_delay.ToMicroseconds() / 1e6
        if tenant.flight:
            more.put_nowait(now + max(request.retry, 0.0))

    writer = asyncio.create_task(write())
    try:
        while (response := await call.read()) is not aio.EOF:
            now = time.perf_counter() - start
            for number, count in zip(response.ids, response.counts, strict=True):  # type: ignore[attr-defined]
                request = own[number]
                request.tokens += count
                if request.first < 0:
                    request.first = now
            for ended in response.ends:  # type: ignore[attr-defined]
                end(own[ended.id], ended, now)
            if not plan.drain and now > plan.seconds:
                break
    finally:
        writer.cancel()
        call.cancel()
        seen.requests += own


async def watch(seen: Seen) -> None:
    """How late the process is."""
    start = time.perf_counter()
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_S)
        late = time.perf_counter() - before - LAG_S
        if late > LAG_S:
            seen.late.append((before - start, late))


async def run(plan: Plan) -> Seen:
    """Sends everything and waits for the answers, GRACE_S at most."""
    seen = Seen()
    async with aio.insecure_channel(plan.target, options=CLIENT_OPTIONS) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        await channel.channel_ready()
        watcher = asyncio.create_task(watch(seen))
        print("begin", flush=True)
        senders = [asyncio.create_task(send(stub, plan, tenant, seen)) for tenant in plan.tenants]
        await asyncio.sleep(plan.seconds)
        print("end", flush=True)
        _, late = await asyncio.wait(senders, timeout=GRACE_S)
        for sender in [*late, watcher]:
            sender.cancel()
        for result in await asyncio.gather(*senders, watcher, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    return seen


def main() -> None:
    """Entry point."""
    data = json.load(sys.stdin)
    tenants = [Tenant(**each) for each in data.pop("tenants")]
    seen = uvloop.run(run(Plan(**data, tenants=tenants)))
    # Buffered, whatever the interpreter was told: unbuffered text forgets the rest of a write that was cut short, as
    # writes of more than a pipe holds are when the machine is suspended.
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as whole:
        whole.write(json.dumps(asdict(seen)) + "\n")


if __name__ == "__main__":
    main()
