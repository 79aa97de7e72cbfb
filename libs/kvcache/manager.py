"""Which KV-cache manager to talk to: the first by name, so that all batchers and executors agree without a word."""

from contextlib import AsyncExitStack

from headrace.registry.v1 import registry_pb2
from libs.registry import keys
from libs.registry.registry import Registry


class ManagerChoice:
    """Follows the managers in the registry."""

    def __init__(self, registry: Registry) -> None:
        self._managers = registry.mirror(keys.services("kvcache"), registry_pb2.ServiceInstance)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once the managers have been read; whether there is one does not matter."""
        await self._stack.enter_async_context(self._managers)

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def endpoint(self) -> str | None:
        """host:port of the manager, as far as the registry is known."""
        managers = self._managers.items
        return managers[min(managers)].endpoint if managers else None
