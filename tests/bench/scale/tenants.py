"""Short requests of many tenants in turn, by Generate, so many at once. Runs as a process of its own.

Says "begin" and "end" around what counts, and then, as JSON, how many requests ended within.
"""

import argparse
import asyncio
import json
import time
from itertools import count

import uvloop
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from libs.rpc.channels import CLIENT_OPTIONS
from tests.bench.scale.stand import key


async def run(options: argparse.Namespace) -> dict[str, float]:
    """Warms up, then counts."""
    done = failed = 0
    numbers = count()

    async def ask(stub: "inference_pb2_grpc.InferenceServiceAsyncStub") -> None:
        nonlocal done, failed
        while True:
            number = next(numbers)
            request = pb.GenerateRequest(
                model=options.model, prompt=f"Request {number}: {'water ' * 20}", output_form=pb.OUTPUT_FORM_TOKEN_IDS,
                sampling=pb.Sampling(max_tokens=options.tokens, ignore_end=True),
            )  # fmt: skip
            bearer = f"Bearer {key(number % options.tenants)}"
            try:
                async for _ in stub.Generate(request, metadata=(("authorization", bearer),)):
                    pass
                done += 1
            except aio.AioRpcError:
                failed += 1
                await asyncio.sleep(0.1)

    async with aio.insecure_channel(options.target, options=CLIENT_OPTIONS) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        workers = [asyncio.create_task(ask(stub)) for _ in range(options.flight)]
        await asyncio.sleep(options.warm)
        before, begin, own = (done, failed), time.monotonic(), time.process_time()
        print("begin", flush=True)
        await asyncio.sleep(options.seconds)
        print("end", flush=True)
        seconds, own = time.monotonic() - begin, time.process_time() - own
        ended = {"done": done - before[0], "failed": failed - before[1], "seconds": seconds, "client_cpu_s": own}
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return ended


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("target", str), ("model", str), ("flight", int), ("tokens", int), ("tenants", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--warm", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
