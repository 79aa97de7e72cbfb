"""What the child is told first; all other messages are those of services.executor.child.wire."""

import msgspec


class Defaults(msgspec.Struct, frozen=True, array_like=True):
    """The model's own way of sampling, where a work says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 means all."""
    repetition_penalty: float = 1.0


class Load(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """What to load, and how."""

    path: str
    """A Hugging Face folder."""
    name: str
    """The base model's, in the catalogue: part of the block hashes."""
    context_tokens: int
    blocks: int
    """0 means as many as there is memory for."""
    block_tokens: int
    slots: int
    step_tokens: int
    vocabulary: int
    """Token ids are below this."""
    eos_ids: tuple[int, ...]
    defaults: Defaults
    question: tuple[int, ...]
    """What the model is asked before it counts as loaded, and at each check."""
    dtype: str
    memory_fraction: float
    kv_cache_bytes: int
    """0 means what `blocks` or `memory_fraction` come to."""
    tensor_parallel: int
    max_adapters: int
    """In one batch; 0 means none at all."""
    max_adapter_rank: int
    enforce_eager: bool
