"""What a child is told to load, and what the probe answers; all else is services.executor.child.wire."""

import msgspec


class Load(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Which model, and how; zero or empty leaves a choice to the engine."""

    model: str
    """The catalogue's name: the salt of its block hashes."""
    source: str
    """A folder, or a name of Hugging Face's hub."""
    revision: str
    tokenizer: str
    context_tokens: int
    blocks: int
    block_tokens: int
    slots: int
    step_tokens: int
    kv_fraction: float
    """Of the GPU memory that the weights leave free."""
    host_cache_bytes: int
    tensor_parallel: int
    pipeline_parallel: int
    backend: str
    """"pytorch" or "tensorrt"."""
    max_adapters: int
    max_adapter_rank: int
    guided_backend: str
    trust_remote_code: bool


class Found(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """TensorRT-LLM is there."""

    version: str


class Missing(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """TensorRT-LLM cannot be imported, or lacks what this engine needs."""

    reason: str


decode_probe = msgspec.msgpack.Decoder(Found | Missing).decode
