"""Closed-loop load on the public API: N requests in flight until the time is up. Runs as a process of its own.

Prints one JSON object: tokens and requests per second, and TTFT in milliseconds. Frames are counted, not
decoded any further, so that the client is not what is measured.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field

import uvloop
from grpc import aio

from headrace.inference.v1 import inference_pb2, inference_pb2_grpc
from libs.rpc.channels import CLIENT_OPTIONS


@dataclass(slots=True)
class Tally:
    """What one run saw."""

    tokens: int = 0
    requests: int = 0
    errors: int = 0
    ttft_ms: list[float] = field(default_factory=list)


def request(arguments: argparse.Namespace, number: int) -> inference_pb2.GenerateRequest:
    """A request with a prompt of its own, whose answer has exactly the wanted length."""
    form = inference_pb2.OUTPUT_FORM_TEXT if arguments.text else inference_pb2.OUTPUT_FORM_TOKEN_IDS
    return inference_pb2.GenerateRequest(
        model=arguments.model,
        prompt=f"Request {number} of a benchmark. " + "water " * arguments.prompt_words,
        sampling=inference_pb2.Sampling(max_tokens=arguments.tokens, ignore_end=True),
        output_form=form,
    )


async def generate(
    stub: "inference_pb2_grpc.InferenceServiceAsyncStub", arguments: argparse.Namespace, tally: Tally
) -> None:
    """One worker: Generate after Generate."""
    metadata = (("authorization", f"Bearer {arguments.key}"),)
    number = 0
    while True:
        number += 1
        start, first = time.perf_counter(), True
        call = stub.Generate(request(arguments, number), metadata=metadata)
        try:
            while (response := await call.read()) is not aio.EOF:
                if first:
                    tally.ttft_ms.append((time.perf_counter() - start) * 1000)
                    first = False
                tally.tokens += len(response.token_ids)  # type: ignore[attr-defined]
                if arguments.text and response.HasField("finish"):  # type: ignore[attr-defined]
                    tally.tokens += arguments.tokens
            tally.requests += 1
        except aio.AioRpcError:
            tally.errors += 1
            await asyncio.sleep(0.1)
        finally:
            call.cancel()


async def session(
    stub: "inference_pb2_grpc.InferenceServiceAsyncStub", arguments: argparse.Namespace, tally: Tally
) -> None:
    """All requests on one stream."""
    call = stub.Session(metadata=(("authorization", f"Bearer {arguments.key}"),))
    started: dict[int, float] = {}
    waiting: set[int] = set()
    numbers = iter(range(1, 10**9))

    def next_one() -> inference_pb2.SessionGenerate:
        number = next(numbers)
        started[number] = time.perf_counter()
        waiting.add(number)
        return inference_pb2.SessionGenerate(id=number, request=request(arguments, number))

    try:
        await call.write(inference_pb2.SessionRequest(generates=[next_one() for _ in range(arguments.flight)]))
        while (response := await call.read()) is not aio.EOF:
            if waiting:
                now = time.perf_counter()
                for number in waiting.intersection(response.ids):  # type: ignore[attr-defined]
                    waiting.discard(number)
                    tally.ttft_ms.append((now - started.pop(number)) * 1000)
            tally.tokens += sum(response.counts)  # type: ignore[attr-defined]
            ends = response.ends  # type: ignore[attr-defined]
            if ends:
                tally.requests += sum(end.HasField("finish") for end in ends)
                tally.errors += sum(end.HasField("failure") for end in ends)
                await call.write(inference_pb2.SessionRequest(generates=[next_one() for _ in ends]))
    finally:
        call.cancel()


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Warms up, then counts for the measured seconds; says on stdout when these begin and end."""
    tally = Tally()
    async with aio.insecure_channel(arguments.target, options=CLIENT_OPTIONS) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        if arguments.door == "session":
            workers = [asyncio.create_task(session(stub, arguments, tally))]
        else:
            workers = [asyncio.create_task(generate(stub, arguments, tally)) for _ in range(arguments.flight)]
        await asyncio.sleep(arguments.warm)
        before, begin = (tally.tokens, tally.requests, tally.errors), time.perf_counter()
        tally.ttft_ms.clear()
        print("begin", flush=True)
        await asyncio.sleep(arguments.seconds)
        seconds = time.perf_counter() - begin
        tokens, requests, errors = tally.tokens - before[0], tally.requests - before[1], tally.errors - before[2]
        print("end", flush=True)
        for worker in workers:
            worker.cancel()
        for result in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    ttft = sorted(tally.ttft_ms) or [float("nan")]
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "requests_per_s": requests / seconds,
        "errors": errors,
        "ttft_p50_ms": ttft[len(ttft) // 2],
        "ttft_p99_ms": ttft[min(len(ttft) - 1, int(len(ttft) * 0.99))],
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--door", choices=("generate", "session"), required=True)
    parser.add_argument("--flight", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-words", type=int, default=20)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--warm", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
