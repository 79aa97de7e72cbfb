"""What an executor says of itself in the registry."""

from collections.abc import Mapping
from typing import cast

from headrace.registry.v1 import registry_pb2
from libs.settings import SettingsInvalid
from services.executor.config import Settings
from services.executor.state import HOLDS_MEMORY, CopyStatus


def executor_record(
    settings: Settings, endpoint: str, started: float, draining: bool, statuses: Mapping[str, CopyStatus]
) -> registry_pb2.Executor:
    """The record, with each copy's state."""
    return registry_pb2.Executor(
        instance=settings.process.instance,
        endpoint=endpoint,
        engine=settings.engine,
        memory_bytes=settings.memory_bytes,
        start_time=started,
        draining=draining,
        labels=labels(settings.labels),
        used_bytes=sum(status.memory_bytes for status in statuses.values() if status.state in HOLDS_MEMORY),
        models=[_copy(pool, status) for pool, status in sorted(statuses.items())],
    )


def labels(texts: tuple[str, ...]) -> dict[str, str]:
    """The settings' "key=value" pairs. Raises SettingsInvalid for what is none."""
    pairs = [text.partition("=") for text in texts]
    if faults := [key + separator + value for key, separator, value in pairs if not (key and separator and value)]:
        raise SettingsInvalid(f"HEADRACE_LABELS: {', '.join(map(repr, faults))} is not key=value")
    return {key: value for key, _, value in pairs}


def _copy(pool: str, status: CopyStatus) -> registry_pb2.ExecutorModel:
    copy = registry_pb2.ExecutorModel(
        model=status.model,
        pool=pool,
        version=status.version,
        state=cast("registry_pb2.ModelState.ValueType", int(status.state)),
        reason=status.reason,
        since=status.since,
        memory_bytes=status.memory_bytes,
        attempts=status.attempts,
        adapters=[
            registry_pb2.ResidentAdapter(adapter=name, memory_bytes=adapter.memory_bytes, works=adapter.works)
            for name, adapter in sorted(status.adapters.items())
            if adapter.loaded
        ],
    )
    if (capacity := status.capacity) is not None:
        copy.slots, copy.blocks, copy.block_tokens = capacity.slots, capacity.blocks, capacity.block_tokens
        copy.adapter_slots, copy.step_tokens = capacity.adapter_slots, capacity.step_tokens
    return copy
