"""Reports this executor's prefix caches to the KV-cache manager."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from libs.kvcache.manager import ManagerChoice
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.report import Reporter
from libs.kvcache.values import CacheInfo, CacheState
from libs.registry.registry import Registry
from libs.streams.client import Dialer
from services.executor.engine import Step
from services.executor.state import CopyStatus, State


class CacheReport:
    """Keeps a mirror of each copy's prefix cache, and tells the KV-cache manager that everybody has chosen."""

    def __init__(self, registry: Registry, instance: str, dialer: Dialer) -> None:
        self._manager = ManagerChoice(registry)
        self._instance = instance
        self._dialer = dialer
        self._mirrors: dict[str, CacheMirror] = {}
        self._reporter: Reporter | None = None
        self._stack = AsyncExitStack()

    def start(self) -> None:
        """Begins; the manager and etcd may come later."""
        self._reporter = Reporter(self._instance, self._snapshot, self._dialer, self._manager.endpoint)
        self._stack.push_async_callback(self._reporter.close)

    async def follow(self) -> None:
        """Follows the managers in the registry."""
        self._stack.push_async_callback(self._manager.close)
        await self._manager.start()

    async def close(self) -> None:
        """Ends the report."""
        await self._stack.aclose()

    def set_copies(self, statuses: Mapping[str, CopyStatus]) -> None:
        """Replaces the copies whose caches are reported: those that are READY."""
        ready = {
            pool: CacheInfo(pool, capacity.blocks, capacity.block_tokens, capacity.exactness)
            for pool, status in statuses.items()
            if status.state is State.READY and (capacity := status.capacity) is not None
        }
        if {pool: mirror.info for pool, mirror in self._mirrors.items()} == ready:
            return
        self._mirrors = {
            pool: known if (known := self._mirrors.get(pool)) and known.info == info else CacheMirror(info)
            for pool, info in ready.items()
        }
        if self._reporter is not None:
            self._reporter.refresh()

    def on_step(self, pool: str, step: Step) -> None:
        """Passes a step's block events on."""
        if step.events and self._reporter is not None and (mirror := self._mirrors.get(pool)) is not None:
            mirror.apply(step.events)
            self._reporter.push(pool, step.events)

    def _snapshot(self) -> Sequence[CacheState]:
        return [mirror.state() for mirror in self._mirrors.values()]
