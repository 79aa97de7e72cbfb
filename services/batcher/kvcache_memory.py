"""The KV-cache manager over gRPC, as the batcher's Memory."""

from collections.abc import Callable
from contextlib import AsyncExitStack

from libs.kvcache.consult import Consultation
from libs.kvcache.manager import ManagerChoice
from libs.kvcache.values import Answer, Question
from libs.registry.registry import Registry
from libs.streams.client import Dialer
from services.batcher.memory import Ask, Reply


class KvCacheMemory:
    """Asks the KV-cache manager that everybody has chosen."""

    def __init__(self, registry: Registry, instance: str, dialer: Dialer) -> None:
        self._manager = ManagerChoice(registry)
        self._instance = instance
        self._dialer = dialer
        self._consultation: Consultation | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once the managers have been read; whether one is there does not matter."""
        self._stack.push_async_callback(self._manager.close)
        await self._manager.start()
        self._consultation = Consultation(self._instance, self._dialer, self._manager.endpoint)
        self._stack.push_async_callback(self._consultation.close)

    async def close(self) -> None:
        """Ends the conversation."""
        await self._stack.aclose()

    def ask(self, ask: Ask, done: Callable[[Reply | None], None]) -> None:
        """See services.batcher.memory.Memory."""
        if self._consultation is None:
            done(None)
            return
        question = Question(ask.reservation, ask.pool, ask.block_hashes, ask.executor, ask.blocks, ask.traceparent)
        self._consultation.ask(question, lambda answer: done(_reply(answer)))

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        """See services.batcher.memory.Memory."""
        if self._consultation is not None:
            self._consultation.release(reservation, found_blocks)


def _reply(answer: Answer | None) -> Reply | None:
    return None if answer is None else Reply(answer.reserved, answer.matches, answer.free_blocks)
