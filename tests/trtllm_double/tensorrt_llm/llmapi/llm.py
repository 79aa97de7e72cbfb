"""LLM with the published signatures of its version."""

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tensorrt_llm.executor.request import LoRARequest
from tensorrt_llm.executor.result import IterationResult, RequestOutput
from tensorrt_llm.executor.utils import RequestError
from tensorrt_llm.flavor import FAULT, NEW, record
from tensorrt_llm.llmapi.llm_args import KvCacheConfig, TorchLlmArgs, TrtLlmArgs
from tensorrt_llm.runtime.engine import POISON, Engine, Request
from tensorrt_llm.sampling_params import SamplingParams

DEFAULT_PRIORITY = 0.5


class BaseLLM:
    """What both versions and both backends have."""

    args_class: type[Any] = TorchLlmArgs

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        record("LLM", model=str(model), tokenizer=tokenizer, revision=revision, **kwargs)
        self.args = self.args_class(
            model=model,
            tokenizer=tokenizer,
            tokenizer_mode=tokenizer_mode,
            skip_tokenizer_init=skip_tokenizer_init,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            revision=revision,
            tokenizer_revision=tokenizer_revision,
            **kwargs,
        )
        self.args.kv_cache_config = self.args.kv_cache_config or KvCacheConfig()
        if FAULT == "oom":
            raise RuntimeError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB\n"
                "Traceback of the worker follows"
            )
        if FAULT == "crash":
            os._exit(3)
        if not (Path(model) / "config.json").exists():
            raise OSError(f"{model} is not a local folder and is not a valid model identifier")
        if tensor_parallel_size > 1:
            raise RuntimeError(f"Only 1 GPUs are available, but {tensor_parallel_size} are required.")
        self._end_id = 2
        self._unreadable = False
        self._ids = count(1)
        vocabulary = json.loads((Path(model) / "config.json").read_text()).get("vocab_size", 32_000)
        self._executor: Engine | None = Engine(self.args, self._end_id, vocabulary)

    def _generate(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None,
        lora_request: LoRARequest | None,
        streaming: bool,
        cache_salt: str | None,
        priority: float,
        trace_headers: Mapping[str, str] | None,
    ) -> RequestOutput:
        engine = self._executor
        if engine is None or engine._stopped:
            raise RuntimeError("LLM is shutting down")
        if not isinstance(inputs, list) or not inputs or not all(isinstance(token, int) for token in inputs):
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        params = sampling_params or SamplingParams()
        if not isinstance(params, SamplingParams):
            raise TypeError(f"The sampling_params must be type SamplingParams or None, but got {type(params)}")
        params._setup(self._end_id)
        if not self.args.enable_chunked_prefill and len(inputs) > self.args.max_num_tokens:
            text = f"The sum of prompt length ({len(inputs)}) should not exceed max_num_tokens"
            raise RequestError(text) if NEW else ValueError(text)
        if self.args_class is TrtLlmArgs and len(inputs) + params.max_tokens > (self.args.max_seq_len or 4096):
            raise ValueError(f"The sum of prompt length ({len(inputs)}) and max_tokens should not exceed max_seq_len")
        if params.logprobs and not getattr(self.args, "gather_generation_logits", True):
            raise ValueError("`sampling_params.logprobs` requires `gather_generation_logits=True`")
        if not 0.0 <= priority <= 1.0:
            raise ValueError(f"priority must be a float in [0.0, 1.0], got {priority}")
        if lora_request is not None and self.args.lora_config is None:
            raise ValueError("LoRA requests need lora_config")
        request_id = next(self._ids)
        record(
            "generate_async",
            id=request_id,
            inputs=inputs,
            params={name: getattr(params, name) for name in ("max_tokens", "temperature", "top_k", "top_p", "seed")},
            guided=str(params.guided_decoding),
            lora=lora_request and [lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path],
            streaming=streaming,
            cache_salt=cache_salt,
            priority=priority,
            trace_headers=trace_headers,
        )
        for name in ("stats", "events"):
            if (kept := getattr(engine, name)) is None:
                setattr(engine, name, IterationResult())
            else:
                kept.mark_undone()
        if FAULT == "stats" and POISON in inputs:
            self._unreadable = True
        result = RequestOutput(request_id, inputs, params, engine.cancel, self._handle_background_error)
        engine.submit(Request(result, cache_salt, lora_request, priority))
        return result

    def get_stats_async(self, timeout: float | None = 2) -> Any:
        if self._unreadable:
            raise RuntimeError("the RPC client is closed")
        assert self._executor is not None
        if self._executor.stats is None:
            return _nothing()
        self._executor.stats.set_timeout(timeout)
        return self._executor.stats

    def get_kv_cache_events_async(self, timeout: float | None = 2) -> IterationResult:
        assert self._executor is not None
        assert self._executor.events is not None, "KV Event IterationResult is not properly instantiated."
        self._executor.events.set_timeout(timeout)
        return self._executor.events

    def shutdown(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
            record("shutdown")

    def _handle_background_error(self, error: Exception | str) -> None:
        if isinstance(error, str):
            raise RequestError(error)
        if not isinstance(error, RequestError):
            self.shutdown()
        raise error


async def _nothing() -> Any:
    return
    yield


if NEW:

    class LLM(BaseLLM):
        """1.3."""

        def generate_async(
            self,
            inputs: Any,
            sampling_params: SamplingParams | None = None,
            lora_request: LoRARequest | None = None,
            prompt_adapter_request: Any = None,
            streaming: bool = False,
            kv_cache_retention_config: Any = None,
            disaggregated_params: Any = None,
            trace_headers: Mapping[str, str] | None = None,
            _postproc_params: Any = None,
            scheduling_params: Any = None,
            conversation_params: Any = None,
            cache_salt: str | None = None,
            priority: float = DEFAULT_PRIORITY,
        ) -> RequestOutput:
            return self._generate(inputs, sampling_params, lora_request, streaming, cache_salt, priority, trace_headers)

        def _check_health(self) -> bool:
            return self._executor is not None and self._executor.healthy

else:

    class LLM(BaseLLM):  # type: ignore[no-redef]
        """1.2."""

        def generate_async(
            self,
            inputs: Any,
            sampling_params: SamplingParams | None = None,
            lora_request: LoRARequest | None = None,
            prompt_adapter_request: Any = None,
            streaming: bool = False,
            kv_cache_retention_config: Any = None,
            disaggregated_params: Any = None,
            _postproc_params: Any = None,
            scheduling_params: Any = None,
            cache_salt: str | None = None,
        ) -> RequestOutput:
            return self._generate(inputs, sampling_params, lora_request, streaming, cache_salt, DEFAULT_PRIORITY, None)


class TrtLLM(LLM):
    """The TensorRT backend."""

    args_class = TrtLlmArgs
