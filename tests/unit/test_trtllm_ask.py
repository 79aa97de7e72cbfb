"""What TensorRT-LLM is asked for."""

from typing import Any

import pytest
from msgspec.structs import replace

from libs.lane.work import Grammar, Sampling, Tier, Work
from services.executor.trtllm import ask
from services.executor.trtllm.wire import Load

LOAD = Load(
    model="m", source="/models/m", revision="", tokenizer="", context_tokens=0, blocks=0, block_tokens=0, slots=8,
    step_tokens=512, kv_fraction=0.8, host_cache_bytes=0, tensor_parallel=1, pipeline_parallel=1, backend="pytorch",
    max_adapters=0, max_adapter_rank=64, guided_backend="xgrammar", trust_remote_code=False,
)  # fmt: skip


def work(**sampling: Any) -> Work:
    return Work("r", "t", Tier.INTERACTIVE, "m", (1, 2), Sampling(**{"max_tokens": 9, **sampling}), 0.0)


def test_the_cache_keeps_and_tells_blocks() -> None:
    assert ask.cache_arguments(LOAD, frozenset(), "v1") == {
        "enable_block_reuse": True, "free_gpu_memory_fraction": 0.8, "event_buffer_max_size": 65_536,
        "tokens_per_block": 32,
    }  # fmt: skip
    load = Load(**{**{f: getattr(LOAD, f) for f in LOAD.__struct_fields__}, "blocks": 10, "block_tokens": 64,
                   "host_cache_bytes": 4096})  # fmt: skip
    asked = ask.cache_arguments(load, {"kv_cache_event_hash_algo"}, "v1")
    assert (asked["max_tokens"], asked["tokens_per_block"], asked["host_cache_size"]) == (640, 64, 4096)
    assert asked["kv_cache_event_hash_algo"] == "v1"


def test_what_is_not_given_is_left_to_the_engine() -> None:
    asked = ask.model_arguments(LOAD, "cache", None)
    assert not {"tokenizer", "revision", "max_seq_len", "lora_config"} & asked.keys()


@pytest.mark.parametrize(
    ("sampling", "chosen"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 7}, {"top_k": 1}),
        ({}, {"temperature": 1.0, "top_p": 1.0}),
        ({"temperature": 0.6}, {"temperature": 0.6, "top_p": 1.0}),
        ({"temperature": 0.6, "top_p": 0.5, "top_k": 7}, {"temperature": 0.6, "top_p": 0.5, "top_k": 7}),
    ],
)
def test_a_temperature_is_never_taken_for_greedy(sampling: dict[str, Any], chosen: dict[str, Any]) -> None:
    asked = ask.sampling_arguments(work(**sampling), 9, seeds=False)
    assert {name: asked[name] for name in ("temperature", "top_p", "top_k") if name in asked} == chosen


def test_seeds_go_on_behind_resumed_tokens() -> None:
    made = Work("r", "t", Tier.ASYNC, "m", (1,), Sampling(9, seed=40), 0.0, resumed=(5, 6))
    assert ask.sampling_arguments(made, 7, seeds=True)["seed"] == 42
    again = replace(made, grammar=Grammar("regex", "a"))
    assert ask.sampling_arguments(again, 7, seeds=True)["seed"] == 40, "it is made again from its start"
    assert "seed" not in ask.sampling_arguments(made, 7, seeds=False)
