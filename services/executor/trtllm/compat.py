"""What the installed TensorRT-LLM offers, found out by looking: 1.2 and 1.3 differ in little.

| | 1.2 | 1.3 |
|---|---|---|
| `generate_async(priority=…, trace_headers=…)` | not in all releases | yes |
| number of a cache salt | `tensorrt_llm.inputs` | `tensorrt_llm.runtime.kv_cache_hash` |
| `KvCacheConfig(kv_cache_event_hash_algo=…)` | no, there is one | since the cache manager has a second version |
| `LLM._check_health()` | no | yes |
| a prompt that is too long | ValueError | RequestError |

Importing it takes seconds and touches the GPU: only the child does that, in `load`.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

BLOCK_HASH = "v1_block_key"
"""The names of blocks that hashes.py understands."""

_SALT_IDS = ("tensorrt_llm.runtime.kv_cache_hash", "tensorrt_llm.inputs", "tensorrt_llm.inputs.utils")
_LORA_CONFIGS = ("tensorrt_llm.lora_helper", "tensorrt_llm.lora_manager", "tensorrt_llm.llmapi")
_LORA_REQUESTS = ("tensorrt_llm.executor.request", "tensorrt_llm.executor")
_REQUEST_ERRORS = ("tensorrt_llm.executor.utils", "tensorrt_llm.llmapi", "tensorrt_llm.executor")


class ApiUnknown(Exception):
    """The installed TensorRT-LLM lacks what this engine is built on; the text says what."""


@dataclass(frozen=True, slots=True)
class Api:
    """The names of TensorRT-LLM that are used, and what they take."""

    version: str
    llm: Any
    tensorrt_llm: Any
    """The LLM class of the TensorRT backend; None when there is none."""
    kv_cache_config: Any
    sampling_params: Any
    guided_decoding_params: Any
    lora_request: Any
    lora_config: Any
    request_error: type[Exception]
    salt_id: Callable[[str], int] | None
    """The engine's number for a salt; None when it does not tell."""
    generate_takes: frozenset[str]
    """Keyword arguments of `generate_async`."""

    def fields(self, settings: Any) -> frozenset[str]:
        """What a settings class of the engine can be given."""
        return frozenset(getattr(settings, "model_fields", ()))

    def supported(self, **arguments: Any) -> dict[str, Any]:
        """Those arguments for `generate_async` that this version takes."""
        return {name: value for name, value in arguments.items() if name in self.generate_takes}


def find() -> Api:
    """Imports TensorRT-LLM. Raises ImportError when it is not there, ApiUnknown when it is another one."""
    package = importlib.import_module("tensorrt_llm")
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    version = str(getattr(package, "__version__", "unknown"))
    try:
        llm = package.LLM
        api = Api(
            version=version,
            llm=llm,
            tensorrt_llm=_first(["tensorrt_llm._tensorrt_engine"], "LLM"),
            kv_cache_config=llmapi.KvCacheConfig,
            sampling_params=package.SamplingParams,
            guided_decoding_params=llmapi.GuidedDecodingParams,
            lora_request=_first(_LORA_REQUESTS, "LoRARequest"),
            lora_config=_first(_LORA_CONFIGS, "LoraConfig"),
            request_error=_first(_REQUEST_ERRORS, "RequestError") or RuntimeError,
            salt_id=_first(_SALT_IDS, "get_cache_salt_id"),
            generate_takes=frozenset(inspect.signature(llm.generate_async).parameters),
        )
    except AttributeError as error:
        raise ApiUnknown(f"TensorRT-LLM {version} has no such API: {error}; 1.2 and 1.3 do") from error
    if "cache_salt" not in api.generate_takes:
        raise ApiUnknown(f"TensorRT-LLM {version} cannot salt its prefix cache; 1.2 and 1.3 can")
    return api


def _first(modules: Iterable[str], name: str) -> Any:
    """The first of these modules' `name`; None when none has it."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None
