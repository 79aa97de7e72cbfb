"""What engines are told of a model beyond what all of them need; field meanings: registry.proto."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, cast

from google.protobuf import duration_pb2

from headrace.registry.v1 import registry_pb2


@dataclass(frozen=True, slots=True)
class Simulation:
    """Constants of the simulated engine, and of every engine that the simulator plays; see `step_s`."""

    step_base_us: float = 0.0
    prefill_token_us: float = 0.0
    sequence_us: float = 0.0
    seed: int = 0
    load_us: float = 0.0
    weights_us: float = 0.0
    prefill_context_us: float = 0.0
    decode_context_us: float = 0.0
    host_blocks: int = 0
    host_block_us: float = 0.0

    def step_s(self, prefill: int, prefill_context: float, decode: int, decode_context: float) -> float:
        """Seconds of one engine step: a roofline over the weights, and attention on top.

        Args:
            prefill: Prompt tokens computed in it.
            prefill_context: For each of them the tokens in front of it, added up.
            decode: Sequences that make a token in it.
            decode_context: Their contexts in tokens, added up.
        """
        dense = prefill * self.prefill_token_us + decode * self.sequence_us
        attention = (prefill_context * self.prefill_context_us + decode_context * self.decode_context_us) / 1000
        return (self.step_base_us + max(self.weights_us, dense) + attention) / 1e6


@dataclass(frozen=True, slots=True)
class OpenVino:
    """How the OpenVINO engine loads a model."""

    prompt_lookup_tokens: int = 0
    prompt_lookup_ngram: int = 3


@dataclass(frozen=True, slots=True)
class TrtLlm:
    """How the TensorRT-LLM engine loads a model."""

    kv_fraction: float = 0.9
    host_cache_bytes: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    backend: str = "pytorch"
    max_adapters: int = 0
    max_adapter_rank: int = 64
    guided_backend: str = "xgrammar"
    trust_remote_code: bool = False


Flavor = Literal["", "ensemble", "bls", "tensorrt_llm"]


@dataclass(frozen=True, slots=True)
class Triton:
    """Where a model lies on a Triton server."""

    endpoint: str = ""
    model: str = ""
    flavor: Flavor = ""
    metrics_endpoint: str = ""
    keep_loaded: bool = False
    end_id: int = 0
    pad_id: int = 0
    tls_ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Vllm:
    """How the vLLM engine loads a model."""

    dtype: str = "auto"
    memory_fraction: float = 0.9
    tensor_parallel: int = 1
    max_adapters: int = 0
    max_adapter_rank: int = 16
    enforce_eager: bool = False
    kv_cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Breaker:
    """When an endpoint is left alone. The defaults are those of SGLang's router."""

    failures: int = 10
    window_s: float = 120.0
    open_s: float = 60.0
    successes: int = 3


@dataclass(frozen=True, slots=True)
class Remote:
    """An OpenAI-compatible HTTP endpoint."""

    base_url: str = ""
    model: str = ""
    api: Literal["", "chat", "completions", "completions_tokens"] = ""
    api_key_file: str = ""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    resume: Literal["replay", "continue"] = "replay"
    breaker: Breaker = Breaker()
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: str = ""


def simulation(message: registry_pb2.Simulation) -> Simulation:
    """Reads the message."""
    return Simulation(*(getattr(message, field.name) for field in fields(Simulation)))


def openvino(message: registry_pb2.OpenVinoOptions) -> OpenVino:
    """Reads the message; what is unset gets its default."""
    return OpenVino(message.prompt_lookup_tokens, message.prompt_lookup_ngram or OpenVino().prompt_lookup_ngram)


def trtllm(message: registry_pb2.TrtLlmOptions) -> TrtLlm:
    """Reads the message; what is unset gets its default."""
    default = TrtLlm()
    return TrtLlm(
        kv_fraction=message.kv_fraction or default.kv_fraction,
        host_cache_bytes=message.host_cache_bytes,
        tensor_parallel=message.tensor_parallel or default.tensor_parallel,
        pipeline_parallel=message.pipeline_parallel or default.pipeline_parallel,
        backend=message.backend or default.backend,
        max_adapters=message.max_adapters,
        max_adapter_rank=message.max_adapter_rank or default.max_adapter_rank,
        guided_backend=message.guided_backend or default.guided_backend,
        trust_remote_code=message.trust_remote_code,
    )


def triton(message: registry_pb2.TritonOptions) -> Triton:
    """Reads the message."""
    flavor = registry_pb2.TritonFlavor.Name(message.flavor).removeprefix("TRITON_FLAVOR_").lower()
    return Triton(
        endpoint=message.endpoint,
        model=message.model,
        flavor=cast(Flavor, "" if flavor == "unspecified" else flavor),
        metrics_endpoint=message.metrics_endpoint,
        keep_loaded=message.keep_loaded,
        end_id=message.end_id,
        pad_id=message.pad_id,
        tls_ca_file=message.tls_ca_file,
    )


def vllm(message: registry_pb2.VllmOptions) -> Vllm:
    """Reads the message; what is unset gets its default."""
    default = Vllm()
    return Vllm(
        dtype=message.dtype or default.dtype,
        memory_fraction=message.memory_fraction or default.memory_fraction,
        tensor_parallel=message.tensor_parallel or default.tensor_parallel,
        max_adapters=message.max_adapters,
        max_adapter_rank=message.max_adapter_rank or default.max_adapter_rank,
        enforce_eager=message.enforce_eager,
        kv_cache_bytes=message.kv_cache_bytes,
    )


_APIS = {
    registry_pb2.REMOTE_API_CHAT: "chat",
    registry_pb2.REMOTE_API_COMPLETIONS: "completions",
    registry_pb2.REMOTE_API_COMPLETIONS_TOKENS: "completions_tokens",
}


def remote(message: registry_pb2.RemoteOptions) -> Remote:
    """Reads the message; what is unset gets its default."""
    default, breaker = Remote(), message.breaker
    return Remote(
        base_url=message.base_url.rstrip("/"),
        model=message.model,
        api=cast(Literal["", "chat", "completions", "completions_tokens"], _APIS.get(message.api, "")),
        api_key_file=message.api_key_file,
        requests_per_minute=message.requests_per_minute,
        tokens_per_minute=message.tokens_per_minute,
        connect_timeout_s=seconds(message.connect_timeout, default.connect_timeout_s),
        read_timeout_s=seconds(message.read_timeout, default.read_timeout_s),
        resume="continue" if message.resume == registry_pb2.REMOTE_RESUME_CONTINUE else "replay",
        breaker=Breaker(
            failures=breaker.failures or default.breaker.failures,
            window_s=seconds(breaker.window, default.breaker.window_s),
            open_s=seconds(breaker.open, default.breaker.open_s),
            successes=breaker.successes or default.breaker.successes,
        ),
        headers=dict(message.headers),
        ca_file=message.ca_file,
    )


def seconds(duration: duration_pb2.Duration, default: float) -> float:
    """A duration in seconds; `default` for one that is unset or nothing."""
    return duration.ToMicroseconds() / 1e6 or default
