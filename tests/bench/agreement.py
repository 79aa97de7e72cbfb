"""How many greedy answers of the real model are the same alone and in a batch.

    python -m tests.bench.agreement [--requests 32] [--tokens 64]

Batching changes the order in which an engine adds, and so the last bits of its logits: where two tokens are almost
equally likely, an answer may take the other one. Asks each question alone through Generate, twice, and then all of
them at once on one Session, and prints the shares of answers that are token-identical.
"""

import argparse
import asyncio

from headrace.inference.v1 import inference_pb2 as pb
from tests.system.client import Answer, ask, connect
from tests.system.mesh import Mesh


def _same(some: list[Answer], others: list[Answer]) -> str:
    equal = [a.token_ids == b.token_ids for a, b in zip(some, others, strict=True)]
    prefix = [
        next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), len(a.token_ids))
        for a, b in zip(some, others, strict=True)
    ]
    tokens = sum(len(a.token_ids) for a in some)
    return f"{sum(equal)} of {len(equal)} answers; {sum(prefix) / tokens:.0%} of tokens before the first difference"


async def run(mesh: Mesh, count: int, tokens: int) -> None:
    """Asks, and prints."""
    requests: list[pb.GenerateRequest] = [
        ask("smollm2", f"Question {i}: name {i + 2} things that a water mill needs, and why.\nAnswer:", tokens)
        for i in range(count)
    ]
    async with connect(mesh.target, mesh.key) as client:
        alone = [await client.generate(request) for request in requests]
        again = [await client.generate(request) for request in requests]
        batched, _ = await client.session(requests)
    print("alone twice:              ", _same(alone, again))
    print("Generate alone, Session:  ", _same(alone, batched))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    with Mesh(engine="openvino") as mesh:
        asyncio.run(run(mesh, arguments.requests, arguments.tokens))


if __name__ == "__main__":
    main()
