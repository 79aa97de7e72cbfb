"""Settings classes that, like the published ones, refuse what they do not know."""

from typing import Any, ClassVar

from tensorrt_llm.flavor import NEW


class Strict:
    """What pydantic's extra="forbid" does: an unknown name raises ValueError."""

    model_fields: ClassVar[dict[str, Any]] = {}

    def __init__(self, **given: Any) -> None:
        if unknown := given.keys() - self.model_fields.keys():
            raise ValueError(f"{type(self).__name__}: Extra inputs are not permitted: {', '.join(sorted(unknown))}")
        for name, default in self.model_fields.items():
            setattr(self, name, given.get(name, default))


class KvCacheConfig(Strict):
    """The KV cache."""

    model_fields: ClassVar[dict[str, Any]] = {
        "enable_block_reuse": True,
        "max_tokens": None,
        "max_attention_window": None,
        "sink_token_length": None,
        "free_gpu_memory_fraction": 0.9,
        "host_cache_size": None,
        "onboard_blocks": True,
        "cross_kv_cache_fraction": None,
        "secondary_offload_min_priority": None,
        "event_buffer_max_size": 0,
        "attention_dp_events_gather_period_ms": 5,
        "enable_partial_reuse": True,
        "copy_on_partial_reuse": True,
        "use_uvm": False,
        "max_gpu_total_bytes": 0,
        "dtype": "auto",
        "tokens_per_block": 32,
        **({"kv_cache_event_hash_algo": "auto", "use_kv_cache_manager_v2": "auto"} if NEW else {}),
    }

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        fraction = self.free_gpu_memory_fraction  # type: ignore[attr-defined]
        if not 0 <= fraction <= 1:
            raise ValueError("kv_cache_config.free_gpu_memory_fraction must be a float between 0 and 1")


class LlmArgs(Strict):
    """What LLM takes beside its named arguments."""

    model_fields: ClassVar[dict[str, Any]] = {
        "model": None,
        "tokenizer": None,
        "tokenizer_mode": "auto",
        "skip_tokenizer_init": False,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "dtype": "auto",
        "revision": None,
        "tokenizer_revision": None,
        "pipeline_parallel_size": 1,
        "lora_config": None,
        "kv_cache_config": None,
        "enable_chunked_prefill": False,
        "guided_decoding_backend": None,
        "peft_cache_config": None,
        "scheduler_config": None,
        "max_batch_size": 2048,
        "max_input_len": 1024,
        "max_seq_len": None,
        "max_beam_width": 1,
        "max_num_tokens": 8192,
        "return_perf_metrics": False,
    }


class TorchLlmArgs(LlmArgs):
    """Of the PyTorch backend."""

    model_fields: ClassVar[dict[str, Any]] = {
        **LlmArgs.model_fields,
        "enable_iter_perf_stats": False,
        "disable_overlap_scheduler": False,
        "stream_interval": 1,
        "sampler_type": "auto",
    }


class TrtLlmArgs(LlmArgs):
    """Of the TensorRT backend."""

    model_fields: ClassVar[dict[str, Any]] = {**LlmArgs.model_fields, "gather_generation_logits": False}
