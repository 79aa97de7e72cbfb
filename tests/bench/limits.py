"""Ten times a tenant's tokens per minute, for a minute, at three admission processes: what gets through.

    python -m tests.bench.limits [--factor 10] [--seconds 60] [--scenes even,uneven,moving,alone] [--out FILE.json]

A mesh of its own, real processes, the simulated engine. One tenant sends requests of one size, open loop, Poisson
arrivals, and nobody heeds RetryInfo:

    even     through Envoy, which spreads them
    uneven   to the processes themselves: 70 %, 25 % and 5 % of them
    moving   to one process at a time, to the next one after ten seconds
    alone    to one process, each when the one before has its answer: what a refusal takes and costs

`even` comes first, when no process knows the tenant; the others find a second's worth of tokens saved up. What got
through is what the answers of requests that came within the time used, prompt and answer. A refusal's time is what the
client sees, from before the call is made to behind its end. On a machine that others use, milliseconds are theirs: so
beside it stands the load; and in the last scene one process refuses, and the others are idle.
"""

import argparse
import asyncio
import hashlib
import json
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop
import yaml
from google.rpc import error_details_pb2
from grpc import aio
from rich.console import Console
from rich.table import Table

from headrace.inference.v1 import inference_pb2 as pb
from tests.system.client import Client, details
from tests.system.mesh import Mesh

KEY = "headrace-bench-metered"
TOKENS_PER_MIN = 30_000
ANSWER = 40
"""Tokens of an answer; with its prompt a request has about 60."""
LONG = 2000
"""Tokens that take 4 s to pay."""
ADMISSIONS = 3
MOVES_S, ALONE_S = 10.0, 2.5
IDLE_S = 5.0
"""Between two scenes."""
ETERNITY_S = 30.0


@dataclass(slots=True)
class Tally:
    """What became of a scene's requests."""

    offered: int = 0
    answered: int = 0
    tokens: int = 0
    offered_tokens: float = 0.0
    refused_ms: list[float] = field(default_factory=list)
    retry_s: list[float] = field(default_factory=list)
    limits: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    cpu_us: float = 0.0
    """Of the process, for each request, where that was measured."""


async def one(client: Client, number: int, tally: Tally, max_tokens: int = ANSWER) -> None:
    """One request to its end."""
    request = pb.GenerateRequest(
        model="simulated",
        prompt=f"Request {number:07} of a tenant.",
        sampling=pb.Sampling(max_tokens=max_tokens, ignore_end=True),
        output_form=pb.OUTPUT_FORM_TOKEN_IDS,
    )
    began = time.perf_counter()
    try:
        answer = await client.generate(request, timeout_s=ETERNITY_S)
    except aio.AioRpcError as error:
        took_ms = (time.perf_counter() - began) * 1000
        found: dict[str, Any] = dict(details(error))
        quota, retry = found.get("QuotaFailure"), found.get("RetryInfo")
        if not isinstance(quota, error_details_pb2.QuotaFailure) or retry is None:
            tally.others[f"{error.code().name}: {error.details()}"[:100]] += 1
            return
        tally.refused_ms.append(took_ms)
        tally.retry_s.append(retry.retry_delay.ToMicroseconds() / 1e6)
        tally.limits.update(v.subject.rpartition("/")[2] for v in quota.violations)
        return
    assert answer.finish is not None
    tally.answered += 1
    tally.tokens += answer.finish.usage.prompt_tokens + answer.finish.usage.output_tokens


async def scene(
    clients: Sequence[Client],
    choose: Callable[[random.Random, float], int],
    per_s: float,
    seconds: float,
) -> Tally:
    """Sends for so many seconds, waits for every answer."""
    chance, tally, number = random.Random(11), Tally(), 0
    begun = due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (due := due + chance.expovariate(per_s)) < begun + seconds:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            number += 1
            group.create_task(one(clients[choose(chance, due - begun)], number, tally))
    tally.offered = number
    return tally


async def one_by_one(client: Client, admission: int, seconds: float) -> Tally:
    """Sends the next when the one before has its answer, which is a refusal: a long answer is under way."""
    tally, process = Tally(), psutil.Process(admission)
    while True:
        long = asyncio.create_task(one(client, 0, Tally(), LONG))
        await asyncio.sleep(1.0)
        if not long.done():  # else it was refused itself
            break
    before = sum(process.cpu_times()[:2])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        tally.offered += 1
        await one(client, tally.offered, tally)
    tally.cpu_us = (sum(process.cpu_times()[:2]) - before) * 1e6 / tally.offered
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    return tally


def spread(chance: random.Random, _: float) -> int:
    """Seven in ten to the first process."""
    return chance.choices(range(ADMISSIONS), (0.7, 0.25, 0.05))[0]


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that this share is not above, in three digits; None without values."""
    ordered = sorted(values)
    return float(f"{ordered[min(int(share * len(ordered)), len(ordered) - 1)]:.3g}") if ordered else None


def row(name: str, tally: Tally, per_request: float, seconds: float) -> dict[str, object]:
    """What is kept of a scene."""
    return {
        "scene": name,
        "offered_factor": round(tally.offered * per_request * 60 / seconds / TOKENS_PER_MIN, 2),
        "offered": tally.offered,
        "answered": tally.answered,
        "refused": len(tally.refused_ms),
        "others": dict(tally.others),
        "tokens": tally.tokens,
        "through": round(tally.tokens * 60 / seconds / TOKENS_PER_MIN, 4),
        "limits": dict(tally.limits),
        "refused_p50_ms": quantile(tally.refused_ms, 0.5),
        "refused_p99_ms": quantile(tally.refused_ms, 0.99),
        "cpu_us": round(tally.cpu_us),
        "retry_p50_s": quantile(tally.retry_s, 0.5),
        "retry_max_s": round(max(tally.retry_s, default=0.0), 3),
    }


async def play(mesh: Mesh, scenes: Sequence[str], factor: float, seconds: float) -> list[dict[str, object]]:
    """All scenes, one after the other."""
    rows = []
    async with AsyncExitStack() as stack:

        async def to(port: int) -> Client:
            return Client(await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{port}")), KEY)

        door = await to(mesh.port)
        own = [await to(mesh.snapshot().component(f"admission-{number + 1}").port) for number in range(ADMISSIONS)]
        operator = Client(await stack.enter_async_context(aio.insecure_channel(mesh.target)), mesh.key)
        for number in range(8):
            await one(operator, number, Tally())  # what is done for the first time is not measured
        for client in (door, *own):
            await client.inference.ListModels(pb.ListModelsRequest(), metadata=client.metadata)
        probe = Tally()
        await one(operator, 0, probe)
        per_request = float(probe.tokens)
        per_s = factor * TOKENS_PER_MIN / 60 / per_request
        for index, name in enumerate(scenes):
            if index:
                await asyncio.sleep(IDLE_S)
            if name == "even":
                tally = await scene([door], lambda *_: 0, per_s, seconds)
            elif name == "uneven":
                tally = await scene(own, spread, per_s, seconds)
            elif name == "alone":
                tally = await one_by_one(own[0], mesh.pid("admission-1"), min(seconds, ALONE_S))
            else:
                tally = await scene(own, lambda _, at: int(at / MOVES_S) % ADMISSIONS, per_s, seconds)
            rows.append({**row(name, tally, per_request, seconds), "load": round(psutil.getloadavg()[0], 1)})
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--scenes", default="even,uneven,moving,alone")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tenants = Path(folder) / "tenants"
        tenants.mkdir()
        record = {
            "name": "metered",
            "key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()],
            "tokens_per_min": TOKENS_PER_MIN,
        }
        (tenants / "metered.yaml").write_text(yaml.safe_dump(record))
        with Mesh(admissions=ADMISSIONS, envoy=True, extra_policy=Path(folder)) as mesh:
            rows = uvloop.run(play(mesh, arguments.scenes.split(","), arguments.factor, arguments.seconds))
    names = ("scene", "offered", "through", "answered", "refused", "p50, ms", "p99")
    table = Table(*names)
    for each in rows:
        table.add_row(
            str(each["scene"]), f"×{each['offered_factor']}", f"{float(str(each['through'])):.2%}",
            str(each["answered"]), str(each["refused"]), str(each["refused_p50_ms"]), str(each["refused_p99_ms"]),
        )  # fmt: skip
    Console().print(table)
    if arguments.out:
        result = {
            "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
            "admissions": ADMISSIONS,
            "tokens_per_min": TOKENS_PER_MIN,
            "seconds": arguments.seconds,
            "scenes": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
