"""Asks the KV-cache manager and waits for the answer: for Explain, which has the time."""

import asyncio

from services.batcher.memory import Ask, Memory, Reply


async def look(memory: Memory, ask: Ask) -> Reply | None:
    """The manager's answer; None when it is away or late."""
    answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
    memory.ask(ask, lambda reply: None if answer.done() else answer.set_result(reply))
    return await answer
