"""The tensors that tensorrtllm_backend's models have, and what a model's configuration lacks of them. Pure.

Names and types are those of all_models/inflight_batcher_llm/*/config.pbtxt in the TensorRT-LLM repository, and
the older names beside them where they changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.executor.engine import Capabilities, Exactness

Flavor = Literal["ensemble", "bls", "tensorrt_llm"]

SHARED_INPUTS = {
    "end_id": "INT32", "pad_id": "INT32", "temperature": "FP32", "repetition_penalty": "FP32",
    "presence_penalty": "FP32", "frequency_penalty": "FP32", "seed": "UINT64", "random_seed": "UINT64",
    "return_log_probs": "BOOL", "return_perf_metrics": "BOOL", "return_num_output_tokens": "BOOL",
    "exclude_input_in_output": "BOOL", "lora_task_id": "UINT64", "lora_weights": "FP16", "lora_config": "INT32",
    "guided_decoding_guide_type": "BYTES", "guided_decoding_guide": "BYTES",
}  # fmt: skip
TEXT_INPUTS = {
    **SHARED_INPUTS, "text_input": "BYTES", "max_tokens": "INT32", "stream": "BOOL", "top_k": "INT32", "top_p": "FP32",
}  # fmt: skip
TOKEN_INPUTS = {
    **SHARED_INPUTS, "input_ids": "INT32", "input_lengths": "INT32", "request_output_len": "INT32",
    "streaming": "BOOL", "stop": "BOOL", "runtime_top_k": "INT32", "runtime_top_p": "FP32", "stop_words_list": "INT32",
}  # fmt: skip
TEXT_OUTPUTS = {"text_output": "BYTES", "kv_cache_reused_blocks": "INT32", "num_output_tokens": "INT32"}
TOKEN_OUTPUTS = {
    "output_ids": "INT32", "sequence_length": "INT32", "output_log_probs": "FP32", "kv_cache_reused_blocks": "INT32",
}  # fmt: skip
"""Of every tensor that is used: its type. None but those of NEEDED must be there."""

NEEDED: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "text": (frozenset({"text_input", "max_tokens", "stream"}), frozenset({"text_output"})),
    "tokens": (
        frozenset({"input_ids", "input_lengths", "request_output_len", "streaming"}),
        frozenset({"output_ids", "sequence_length"}),
    ),
}
"""Inputs and outputs without which nothing can be asked."""

LORA = frozenset({"lora_task_id", "lora_weights", "lora_config"})
GUIDED = frozenset({"guided_decoding_guide_type", "guided_decoding_guide"})
PENALTIES = frozenset({"repetition_penalty", "presence_penalty", "frequency_penalty"})
GRAMMARS = frozenset({"json_schema", "regex", "ebnf"})

ADAPTER_SLOTS = 64
"""Adapters that a copy may hold: TensorRT-LLM bounds them by memory, and asks for one again that it dropped."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a Triton server says of a model."""

    name: str
    inputs: Mapping[str, str]
    """Name to type: "INT32", "BYTES" and so on."""
    outputs: Mapping[str, str]
    decoupled: bool
    max_batch_size: int
    """Above 0, every tensor has a leading dimension for the batch."""
    steps: tuple[str, ...] = ()
    """The models of an ensemble."""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def flag(self, name: str, default: bool) -> bool:
        """A parameter that is a yes or no; `default` where it is not set or was never filled in."""
        value = self.parameters.get(name, "").strip().lower()
        return default if not value or value.startswith("${") else value in ("true", "1", "yes", "t", "y")


def faults(facts: ModelFacts, flavor: Flavor) -> list[str]:
    """Everything in a model's configuration that is not as its flavor needs it, in sentences for an operator."""
    tokens = flavor == "tensorrt_llm"
    needed_inputs, needed_outputs = NEEDED["tokens" if tokens else "text"]
    inputs, outputs = (TOKEN_INPUTS, TOKEN_OUTPUTS) if tokens else (TEXT_INPUTS, TEXT_OUTPUTS)
    found = []
    if not facts.decoupled:
        found.append("it is not decoupled, so it cannot stream: set model_transaction_policy { decoupled: true }")
    if flavor == "ensemble" and not facts.steps:
        found.append("it is no ensemble")
    for kind, needed, known, there in (
        ("input", needed_inputs, inputs, facts.inputs),
        ("output", needed_outputs, outputs, facts.outputs),
    ):
        found += [f"{kind} {name} ({known[name]}) is missing" for name in sorted(needed - there.keys())]
        found += [
            f"{kind} {name} is {datatype}, not {known[name]}"
            for name, datatype in sorted(there.items())
            if name in known and known[name] != datatype
        ]
    return found


def capabilities(facts: ModelFacts, flavor: Flavor, remembers: bool = True) -> Capabilities:
    """What the model can do, by the tensors that it has, and by whether its engine reuses blocks.

    Log-probabilities belong to the server's tokens, so only `tensorrt_llm` has them: the text flavors' text is cut
    into tokens anew. They also leave out special tokens, so an answer cannot go on behind its end.
    """
    inputs = facts.inputs.keys()
    tokens = flavor == "tensorrt_llm"
    return Capabilities(
        exactness=Exactness.MODELLED,
        grammars=GRAMMARS if inputs >= GUIDED else frozenset(),
        log_probs=tokens and "return_log_probs" in inputs and "output_log_probs" in facts.outputs,
        adapters="batch" if inputs >= LORA else "none",
        remembers=remembers,
        cached_tokens=tells_cached_tokens(facts),
        seeds="seed" in inputs or "random_seed" in inputs,
        penalties=inputs >= PENALTIES,
        ignore_end=tokens and "end_id" in inputs,
        top_k=("runtime_top_k" if tokens else "top_k") in inputs,
        token_ids=tokens,
    )


def tells_cached_tokens(facts: ModelFacts) -> bool:
    """Whether it says how many blocks it found in its cache."""
    return "return_perf_metrics" in facts.inputs and "kv_cache_reused_blocks" in facts.outputs
