"""What the engine is told: at the load, and of every work. Pure.

Traps: without top_p and top_k the engine of 1.2 takes any temperature for greedy, so one of them is always given;
a temperature of 0 is not allowed everywhere, so greedy is top_k 1; an end id that is given keeps the
engine from reading the model's own, so none is.
"""

from collections.abc import Set
from typing import Any

from libs.lane.work import Tier, Work
from services.executor.engine import Capabilities, Exactness
from services.executor.sampling import GREEDY_BELOW, seed_of
from services.executor.trtllm.wire import Load

BLOCK_TOKENS = 32
"""Tokens per block where the catalogue says nothing; the engine's own default."""

EVENT_BUFFER = 65_536
"""Block events that the engine keeps until they are read. A step of 8,192 tokens stores some hundreds."""


PRIORITIES = {Tier.INTERACTIVE: 0.75, Tier.ASYNC: 0.25}
"""Of 0 to 1; 0.5 is the engine's default."""

GUIDES = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
"""Fields of GuidedDecodingParams."""


def block_tokens(load: Load) -> int:
    """Tokens per block."""
    return load.block_tokens or BLOCK_TOKENS


def cache_arguments(load: Load, fields: Set[str], block_hash: str) -> dict[str, Any]:
    """For KvCacheConfig, which has these fields."""
    arguments: dict[str, Any] = {
        "enable_block_reuse": True,
        "free_gpu_memory_fraction": load.kv_fraction,
        "event_buffer_max_size": EVENT_BUFFER,
        "tokens_per_block": block_tokens(load),
    }
    if load.blocks:
        arguments["max_tokens"] = load.blocks * block_tokens(load)
    if load.host_cache_bytes:
        arguments["host_cache_size"] = load.host_cache_bytes
    if "kv_cache_event_hash_algo" in fields:
        arguments["kv_cache_event_hash_algo"] = block_hash
    return arguments


def model_arguments(load: Load, cache: Any, lora: Any) -> dict[str, Any]:
    """For LLM."""
    arguments: dict[str, Any] = {
        "model": load.source,
        "tensor_parallel_size": load.tensor_parallel,
        "pipeline_parallel_size": load.pipeline_parallel,
        "trust_remote_code": load.trust_remote_code,
        "kv_cache_config": cache,
        "max_batch_size": load.slots,
        "max_num_tokens": load.step_tokens,
        "max_beam_width": 1,
        "enable_chunked_prefill": True,
    }
    if load.tokenizer:
        arguments["tokenizer"] = load.tokenizer
    if load.revision:
        arguments["revision"] = load.revision
    if load.context_tokens:
        arguments["max_seq_len"] = load.context_tokens
    if load.guided_backend:
        arguments["guided_decoding_backend"] = load.guided_backend
    if lora is not None:
        arguments["lora_config"] = lora
    if load.backend == "pytorch":
        arguments["enable_iter_perf_stats"] = True
    else:
        arguments["gather_generation_logits"] = True  # without it, no log-probabilities
    return arguments


def lora_arguments(load: Load) -> dict[str, Any]:
    """For LoraConfig. The modules are those of every llama-like model; an adapter may have fewer."""
    return {
        "lora_target_modules": [
            "attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate",
        ],
        "max_lora_rank": load.max_adapter_rank,
        "max_loras": load.max_adapters,
        "max_cpu_loras": 4 * load.max_adapters,
    }  # fmt: skip


def capabilities(load: Load, takes: Set[str]) -> Capabilities:
    """What the model can do, from how it is loaded and what `generate_async` takes.

    The samplers of the PyTorch backend know no penalties, and no seed of a single request.
    """
    compiled = load.backend != "pytorch"
    return Capabilities(
        exactness=Exactness.EXACT,
        grammars=frozenset(GUIDES) if load.guided_backend else frozenset(),
        log_probs=True,
        adapters="batch" if load.max_adapters else "none",
        salted_cache=True,
        cached_tokens=True,
        seeds=compiled,
        penalties=compiled,
        ignore_end=True,
        top_k=True,
        priority="priority" in takes,
    )


def sampling_arguments(work: Work, max_tokens: int, seeds: bool) -> dict[str, Any]:
    """For SamplingParams, grammar apart. A temperature that is not given is 1. With a grammar the
    answer is made again from its start, and so with the same seed."""
    sampling = work.sampling
    arguments: dict[str, Any] = {
        "max_tokens": max_tokens,
        "ignore_eos": sampling.ignore_end,
        "detokenize": False,
        "add_special_tokens": False,
    }
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    if temperature < GREEDY_BELOW:
        arguments["top_k"] = 1
    else:
        arguments["temperature"] = temperature
        arguments["top_p"] = 1.0 if sampling.top_p is None else sampling.top_p
        if sampling.top_k:
            arguments["top_k"] = sampling.top_k
    if seeds:
        arguments["seed"] = seed_of(work, 0 if work.grammar else len(work.resumed))
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if (value := getattr(sampling, name)) is not None:
            arguments[name] = value
    if work.log_probs:
        arguments["logprobs"] = 1
    return arguments
