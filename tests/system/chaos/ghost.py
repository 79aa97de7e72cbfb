"""A client that is made to be killed: asks for long answers, for ever, and says when they flow.

python -m tests.system.chaos.ghost TARGET KEY MODEL COUNT
"""

import asyncio
import sys

from libs.client import GenerateOptions, HeadraceClient, StageUnavailable

OPTIONS = GenerateOptions(max_tokens=800, temperature=0, ignore_end=True, output="token_ids")


async def haunt(target: str, key: str, model: str, count: int) -> None:
    """So many answers at a time, half of them on one session."""
    first = asyncio.Event()

    async def read(client: HeadraceClient, number: int) -> None:
        while True:
            try:
                async for _ in client.generate(model, prompt=f"Who is there? {number}", options=OPTIONS):
                    first.set()
            except StageUnavailable:
                pass  # every door is shut, for longer than the SDK tries: it is here to be killed, and asks again

    async with (
        HeadraceClient(target, api_key=key) as streams,
        HeadraceClient(target, api_key=key, multiplex=True) as session,
        asyncio.TaskGroup() as group,
    ):
        for number in range(count):
            group.create_task(read(session if number % 2 else streams, number))
        await first.wait()
        print("flows", flush=True)


if __name__ == "__main__":
    asyncio.run(haunt(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
