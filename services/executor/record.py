"""What an executor says of itself in the registry."""

from collections.abc import Mapping
from typing import cast

from headrace.registry.v1 import registry_pb2
from services.executor.config import Settings
from services.executor.state import ModelStatus


def executor_record(
    settings: Settings, endpoint: str, started: float, draining: bool, statuses: Mapping[str, ModelStatus]
) -> registry_pb2.Executor:
    """The record, with each model's state."""
    return registry_pb2.Executor(
        instance=settings.process.instance,
        endpoint=endpoint,
        engine=settings.engine,
        memory_bytes=settings.memory_bytes,
        start_time=started,
        draining=draining,
        models=[
            registry_pb2.ExecutorModel(
                model=model,
                state=cast("registry_pb2.ModelState.ValueType", int(status.state)),
                reason=status.reason,
                slots=status.slots,
                blocks=status.blocks,
                block_tokens=status.block_tokens,
            )
            for model, status in sorted(statuses.items())
        ],
    )
