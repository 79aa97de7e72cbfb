"""The one module that knows vLLM. Imported only in the child.

The engine core runs in this process, not in one of its own (`LLMEngine` without multiprocessing): a step's
tokens, ends and block events are then one thing, and a model is one process to kill. Written for vLLM 0.32;
what is not part of its documented interface is used in `_watch_blocks`, `_continue_grammars` and `state` only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch._dynamo
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.config import KVEventsConfig, StructuredOutputsConfig, VllmConfig
from vllm.distributed import kv_events
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from libs.lane.work import Grammar
from services.executor.child.fault import last_line
from services.executor.vllm.events import Cleared, Event, Removed, Stored
from services.executor.vllm.sampling import Choice
from services.executor.vllm.wire import Load

MOST_ADAPTERS = 1024
"""Held in main memory. vLLM counts adapters; the executor, which counts their bytes, decides which go."""

ENDS = {"stop": "stop", "length": "length"}
GRAMMARS = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
"""vLLM's names of grammars by ours."""

RESUMED = "headrace_resumed"
"""Says in a request how many tokens at the end of its prompt belong to the answer."""


class LoadError(Exception):
    """The model or adapter cannot be loaded; the text is for an operator."""


class Refused(Exception):
    """vLLM does not take a request; the text is for its caller."""


@dataclass(slots=True)
class Made:
    """What a step made for one request."""

    name: str
    tokens: list[int]
    log_probs: list[float]
    cached_tokens: int
    """Prompt tokens found in the cache."""
    end: str = ""
    """"stop", "length", "INTERNAL", or "" while it goes on."""


class Llm:
    """One loaded model. Raises LoadError."""

    def __init__(self, load: Load) -> None:
        self._eos_ids = list(load.eos_ids)
        self._takes_adapters = load.max_adapters > 0
        self._events: list[Event] = []
        self._adapters: dict[str, LoRARequest] = {}
        self._adapter_ids = 0
        try:
            self._engine = LLMEngine.from_vllm_config(_config(load), disable_log_stats=True)
        except Exception as error:
            raise LoadError(f"vLLM cannot load {load.path}: {last_line(error)}") from error
        client: Any = self._engine.engine_core
        self._core = client.engine_core
        self._watch_blocks()
        self._continue_grammars()
        cache = self._engine.vllm_config.cache_config
        self.blocks = int(cache.num_gpu_blocks or 0) - 1  # one of them stands for "no block"
        self.block_tokens = int(cache.block_size or 0)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._engine.has_unfinished_requests())

    def add(self, name: str, prompt: Sequence[int], how: Choice, tier: int, salt: str = "", adapter: str = "") -> None:
        """Begins a request; lower tiers go first. Names are never used again. Raises Refused."""
        lora = None
        if adapter and (lora := self._adapters.get(adapter)) is None:
            raise Refused(f"the adapter {adapter} is not loaded")
        request: dict[str, Any] = {"prompt_token_ids": list(prompt), **({"cache_salt": salt} if salt else {})}
        try:
            params = _sampling_params(how, self._eos_ids)
            self._engine.add_request(name, request, params, lora_request=lora, priority=tier)
        except (ValueError, VLLMClientError) as error:
            raise Refused(last_line(error)) from error

    def drop(self, name: str) -> None:
        """Drops a request; its blocks are free at once."""
        self._engine.abort_request([name])

    def step(self) -> list[Made]:
        """Computes one step. What it raises is the end of the engine."""
        made = []
        for output in self._engine.step():
            [new] = output.outputs
            tokens = list(new.token_ids)
            log_probs = [entry[token].logprob for entry, token in zip(new.logprobs or (), tokens, strict=False)]
            end = "" if new.finish_reason is None else ENDS.get(new.finish_reason, "INTERNAL")
            if end == "stop" and tokens and tokens[-1] in self._eos_ids:
                del tokens[-1], log_probs[len(tokens) :]
            made.append(Made(output.request_id, tokens, log_probs, output.num_cached_tokens or 0, end))
        return made

    def events(self) -> list[Event]:
        """What has changed in the prefix cache since the last call."""
        events, self._events[:] = self._events[:], []
        return events

    def state(self) -> tuple[int, int, int]:
        """Requests in the batch, requests that wait for it, blocks that requests hold."""
        scheduler = self._core.scheduler
        running, waiting = scheduler.get_request_counts()
        return running, waiting, self.blocks - scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def load_adapter(self, adapter: str, path: str) -> None:
        """Makes an adapter known; requests may run. Idempotent. Raises LoadError."""
        if adapter in self._adapters:
            return
        if not self._takes_adapters:
            raise LoadError("the model was loaded without room for adapters: set vllm.max_adapters in the catalogue")
        self._adapter_ids += 1
        lora = LoRARequest(adapter, self._adapter_ids, path)
        try:
            self._core.add_lora(lora)
        except Exception as error:
            raise LoadError(f"vLLM cannot load the adapter {path}: {last_line(error)}") from error
        self._adapters[adapter] = lora

    def unload_adapter(self, adapter: str) -> None:
        """Forgets an adapter that no request uses. Its blocks stay: their names say whose they are."""
        if (lora := self._adapters.pop(adapter, None)) is not None:
            self._core.remove_lora(lora.lora_int_id)

    def close(self) -> None:
        """Ends the processes that it may have on other devices."""
        self._core.shutdown()

    def _watch_blocks(self) -> None:
        """Takes the block events where the scheduler would publish them, without a socket in between."""
        self._core.scheduler.kv_event_publisher = _Publisher(self._events)

    def _continue_grammars(self) -> None:
        """Has a compiled grammar take the resumed tokens, so that an interrupted answer goes on inside of it."""
        manager = self._core.structured_output_manager
        create = manager._create_grammar

        def create_and_continue(request: Any) -> Any:
            grammar = create(request)
            resumed = (request.sampling_params.extra_args or {}).get(RESUMED, 0)
            if resumed and not grammar.accept_tokens(request.request_id, list(request.prompt_token_ids[-resumed:])):
                raise ValueError("the answer so far does not follow its grammar")
            return grammar

        manager._create_grammar = create_and_continue


class _Publisher:
    """Keeps what the scheduler publishes until it is taken, once per step. See vLLM's EventPublisher."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def publish(self, batch: Any) -> None:
        self._events += map(_event, batch.events)

    def shutdown(self) -> None:
        pass

    def get_publisher_config(self) -> None:
        return None


def _event(event: Any) -> Event:
    if isinstance(event, kv_events.BlockStored):
        keys = event.extra_keys[0] if event.extra_keys else None
        kind = event.kv_cache_spec_kind
        whole = event.group_idx in (None, 0) and kind in (None, "full_attention")
        return Stored(
            event.block_hashes, event.parent_block_hash, event.token_ids, event.lora_name or "", keys or (), whole
        )
    if isinstance(event, kv_events.BlockRemoved):
        return Removed(event.block_hashes)
    return Cleared()


def _config(load: Load) -> VllmConfig:
    """One sequence more than slots, so that a self-check waits for none of them. On a CPU nothing is compiled: that
    takes a minute and a C++ compiler, and makes nothing faster."""
    eager = load.enforce_eager or current_platform.is_cpu()
    torch._dynamo.config.disable = eager  # nor the small functions that vLLM has compiled in any case
    config = EngineArgs(
        model=load.path,
        dtype=load.dtype,
        generation_config="vllm",  # no defaults of sampling: works come with theirs
        max_model_len=load.context_tokens,
        max_num_seqs=load.slots + 1,
        max_num_batched_tokens=load.step_tokens,
        enable_chunked_prefill=True,
        scheduling_policy="priority",
        enable_prefix_caching=True,
        block_size=load.block_tokens,
        num_gpu_blocks_override=load.blocks + 1 if load.blocks else None,
        gpu_memory_utilization=load.memory_fraction,
        kv_cache_memory_bytes=load.kv_cache_bytes or None,
        tensor_parallel_size=load.tensor_parallel,
        kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="null"),
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar"),  # "auto" may want two, and has but one
        enable_lora=load.max_adapters > 0,
        max_loras=max(load.max_adapters, 1),
        max_cpu_loras=max(load.max_adapters, MOST_ADAPTERS),
        max_lora_rank=load.max_adapter_rank,
        enforce_eager=eager,
        use_tqdm_on_load=False,
        disable_log_stats=True,
    ).create_engine_config()
    if load.blocks and not load.kv_cache_bytes:
        # Else vLLM would look for room by `memory_fraction` of a machine that others use as well.
        model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
        numbers = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
        cache.kv_cache_memory_bytes = (load.blocks + 1) * load.block_tokens * numbers * model.dtype.itemsize
    return config


def _sampling_params(how: Choice, eos_ids: list[int]) -> SamplingParams:
    return SamplingParams(
        max_tokens=how.max_tokens,
        temperature=how.temperature,
        top_p=how.top_p,
        top_k=how.top_k,
        seed=how.seed if how.temperature else None,
        repetition_penalty=how.repetition_penalty,
        presence_penalty=how.presence_penalty,
        frequency_penalty=how.frequency_penalty,
        ignore_eos=how.ignore_end,
        stop_token_ids=None if how.ignore_end else eos_ids,
        logprobs=0 if how.log_probs else None,
        structured_outputs=_structure(how.grammar) if how.grammar else None,
        extra_args={RESUMED: how.resumed} if how.grammar and how.resumed else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _structure(grammar: Grammar) -> StructuredOutputsParams:
    return StructuredOutputsParams(**{GRAMMARS[grammar.form]: grammar.text})
