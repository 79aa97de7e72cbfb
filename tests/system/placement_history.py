"""Every revision of the placements, and what may never be, not even for a moment."""

import asyncio
from collections.abc import Collection
from contextlib import aclosing

from headrace.registry.v1 import registry_pb2 as pb
from libs.catalogue import ModelSpec
from libs.registry import EtcdClient, RegistryError, keys
from libs.registry.values import decode
from libs.registry.watch import watch
from tests.system.placement_mesh import MEMORY


class History:
    """Follows a cluster of etcd, and looks at every revision.

    Args:
        client: Not closed here.
        optional: Models that may lie nowhere; every other one that was placed once always lies somewhere.
    """

    def __init__(self, client: EtcdClient, optional: Collection[str]) -> None:
        self.violations: list[str] = []
        self.seen: list[int] = []
        """Every revision that was looked at, in order."""
        self._client = client
        self._optional = frozenset(optional)
        self._epochs: dict[str, int] = {}
        self._known: set[str] = set()
        self._now: dict[str, pb.Placement] = {}

    async def follow(self, revision: int) -> None:
        """For ever, without a gap."""
        while True:
            try:
                async with aclosing(watch(self._client, keys.PLACEMENTS, revision, prefix=True)) as batches:
                    async for batch in batches:
                        for number in sorted({change.mod_revision for change in batch.changes}):
                            for change in batch.changes:
                                if change.mod_revision == number:
                                    self._take(change.key.removeprefix(keys.PLACEMENTS), change.value)
                            self._check(number)
                            revision = number + 1
            except RegistryError:
                await asyncio.sleep(0.1)

    def _take(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._now.pop(key, None)
            return
        placement = decode(value, pb.Placement)
        if placement.epoch < self._epochs.get(key, 0):
            self.violations.append(f"the epoch of {key} went back to {placement.epoch}")
        self._epochs[key] = placement.epoch
        self._now[key] = placement

    def _check(self, revision: int) -> None:
        self.seen.append(revision)
        held: dict[str, int] = {}
        copies: dict[str, int] = {}
        wanted: dict[str, int] = {}
        for placement in self._now.values():
            spec = ModelSpec.from_proto(placement.model)
            most = spec.scaling.max if spec.scaling else spec.replicas
            wanted[spec.name] = max(wanted.get(spec.name, 1), most)
            held[placement.executor] = held.get(placement.executor, 0) + spec.copy_bytes
            copies[spec.name] = copies.get(spec.name, 0) + 1
        for executor, used in held.items():
            if used > MEMORY:
                self.violations.append(f"revision {revision}: {executor} is to hold {used} bytes")
        for name, count in copies.items():
            if count > wanted[name] + 1:  # one more than wanted while it rolls out, never two
                self.violations.append(f"revision {revision}: {count} copies of {name}, {wanted[name]} wanted")
        self._known |= copies.keys()
        for name in self._known - copies.keys() - self._optional:
            self.violations.append(f"revision {revision}: {name} lies nowhere")

    async def complete(self, start: int, end: int) -> None:
        """Reads the same revisions again from etcd, which keeps them all here. Raises AssertionError when the
        watch has missed one, or has looked at one twice."""
        truth: list[int] = []
        async with aclosing(watch(self._client, keys.ROOT, start, prefix=True)) as batches:
            async for batch in batches:
                for change in batch.changes:
                    if change.key.startswith(keys.PLACEMENTS) and change.mod_revision not in truth[-1:]:
                        truth.append(change.mod_revision)
                if batch.changes and batch.changes[-1].mod_revision >= end:
                    break
        truth = [revision for revision in truth if revision <= end]
        seen = [revision for revision in self.seen if revision <= end]
        assert seen == truth, f"the watch saw {seen}, etcd has {truth}"
