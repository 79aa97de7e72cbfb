"""A model of the catalogue as a plain value; the message is headrace.registry.v1.Model."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.registry.v1 import registry_pb2


@dataclass(frozen=True, slots=True)
class Simulation:
    """Constants of the simulated engine: step = base + prefill tokens × a + sequences × b."""

    step_base_us: float = 0.0
    prefill_token_us: float = 0.0
    sequence_us: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is to be loaded, and how much it may use. Field meanings: registry.proto."""

    name: str
    source: str
    context_tokens: int
    blocks: int
    block_tokens: int
    slots: int
    step_tokens: int
    memory_bytes: int = 0
    replicas: int = 1
    engines: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    simulation: Simulation = Simulation()

    @classmethod
    def from_proto(cls, message: registry_pb2.Model) -> "ModelSpec":
        """Reads the message."""
        simulation = message.simulation
        return cls(
            name=message.name,
            source=message.source,
            context_tokens=message.context_tokens,
            blocks=message.blocks,
            block_tokens=message.block_tokens,
            slots=message.slots,
            step_tokens=message.step_tokens,
            memory_bytes=message.memory_bytes,
            replicas=message.replicas,
            engines=tuple(message.engines),
            capabilities=tuple(message.capabilities),
            simulation=Simulation(
                step_base_us=simulation.step_base_us,
                prefill_token_us=simulation.prefill_token_us,
                sequence_us=simulation.sequence_us,
                seed=simulation.seed,
            ),
        )
