"""A work as the input tensors of a flavor. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from libs.lane.work import Grammar, Sampling, Work
from services.executor.sampling import GREEDY_BELOW, seed_of
from services.executor.triton.contract import Flavor, ModelFacts, tells_cached_tokens
from services.executor.triton.tensors import Tensor, numbers, string

NO_END = -1
"""The end_id that no token has."""

_GUIDES = {"json_schema": "json_schema", "regex": "regex", "ebnf": "ebnf_grammar"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one loaded model can take."""

    context_tokens: int
    """Prompt and answer together; 0 is unknown."""
    vocabulary: int
    """One more than the greatest token id; 0 is unknown."""
    ends: tuple[int, ...]
    """Tokens that end an answer; the first is the `end_id`. Empty: the server knows."""
    pad_id: int | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as the backend takes it."""

    task_id: int
    tensors: tuple[Tensor, ...]
    """lora_weights and lora_config; needed until the server has them, and again when it has dropped them."""


def answer_tokens(work: Work, limits: Limits, from_start: bool) -> int:
    """Tokens to ask for: what is left of `max_tokens`, within the context; all of them with `from_start`."""
    done = 0 if from_start else len(work.resumed)
    left = work.sampling.max_tokens - done
    return min(left, limits.context_tokens - len(work.prompt) - done) if limits.context_tokens else left


def inputs(
    work: Work, flavor: Flavor, facts: ModelFacts, limits: Limits, prompt: str | Sequence[int], most: int,
    adapter: Adapter | None = None, with_weights: bool = False, from_start: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The tensors of a request; those that the model does not have are left out.

    Args:
        prompt: Text for the text flavors, token ids for `tensorrt_llm`; resumed tokens included, unless `from_start`.
        most: Tokens to make.
        with_weights: Also send the adapter's weights.
        from_start: Resumed tokens are not in the prompt but are made again.
    """
    ends = () if work.sampling.ignore_end else limits.ends
    tensors = [
        *(_tokens(prompt, most, ends) if not isinstance(prompt, str) else _text(prompt, most)),
        *_end(work.sampling.ignore_end, limits),
        *_sampling(work.sampling, flavor),
        *_seed(work, facts, 0 if from_start else len(work.resumed)),
    ]
    if work.log_probs:
        tensors.append(numbers("return_log_probs", "BOOL", [True]))
    if tells_cached_tokens(facts):
        tensors.append(numbers("return_perf_metrics", "BOOL", [True]))
    if work.grammar is not None:
        tensors += _guide(work.grammar)
    if adapter is not None:
        tensors.append(numbers("lora_task_id", "UINT64", [adapter.task_id]))
        tensors += adapter.tensors if with_weights else ()
    return [batched(tensor, facts) for tensor in tensors if tensor.name in facts.inputs]


def stop(facts: ModelFacts) -> list[Tensor]:
    """The tensors that stop the request whose id they are sent under; for a model of flavor `tensorrt_llm`.

    What is needed of a request is there, and asks for nothing.
    """
    tensors = [
        numbers("input_ids", "INT32", [0]),
        numbers("input_lengths", "INT32", [1]),
        numbers("request_output_len", "INT32", [0]),
        numbers("stop", "BOOL", [True]),
    ]
    return [batched(tensor, facts) for tensor in tensors]


def batched(tensor: Tensor, facts: ModelFacts) -> Tensor:
    """The tensor with a batch of one in front, where the model takes batches."""
    shape = (1, *tensor.shape) if facts.max_batch_size > 0 else tensor.shape
    return Tensor(tensor.name, tensor.datatype, shape, tensor.data)


def task_id(adapter: str) -> int:
    """The number of an adapter at the server: 63 bits of its name's hash."""
    return int.from_bytes(blake2b(adapter.encode(), digest_size=8).digest()) >> 1


def _tokens(prompt: Sequence[int], most: int, ends: Sequence[int]) -> list[Tensor]:
    tensors = [
        numbers("input_ids", "INT32", prompt),
        numbers("input_lengths", "INT32", [len(prompt)]),
        numbers("request_output_len", "INT32", [most]),
        numbers("streaming", "BOOL", [True]),
        numbers("exclude_input_in_output", "BOOL", [True]),
    ]
    if len(ends) > 1:  # ids in the first row, where each word stops in the second
        words = [*ends[1:], *range(1, len(ends))]
        tensors.append(numbers("stop_words_list", "INT32", words, (2, len(ends) - 1)))
    return tensors


def _text(prompt: str, most: int) -> list[Tensor]:
    return [
        string("text_input", prompt),
        numbers("max_tokens", "INT32", [most]),
        numbers("stream", "BOOL", [True]),
        numbers("return_num_output_tokens", "BOOL", [True]),
        numbers("exclude_input_in_output", "BOOL", [True]),
    ]


def _end(ignore: bool, limits: Limits) -> list[Tensor]:
    tensors = [] if limits.pad_id is None else [numbers("pad_id", "INT32", [limits.pad_id])]
    if ignore or limits.ends:
        tensors.append(numbers("end_id", "INT32", [NO_END if ignore else limits.ends[0]]))
    return tensors


def _sampling(sampling: Sampling, flavor: Flavor) -> list[Tensor]:
    """Without top_k and top_p TensorRT-LLM is greedy whatever the temperature, so one of them is always said."""
    top_k, top_p = ("runtime_top_k", "runtime_top_p") if flavor == "tensorrt_llm" else ("top_k", "top_p")
    if sampling.temperature is not None and sampling.temperature < GREEDY_BELOW:
        chosen: list[tuple[str, str, int | float | None]] = [(top_k, "INT32", 1)]
    else:
        nothing_said = sampling.top_k is None and sampling.top_p is None
        everything = 1.0 if sampling.temperature is not None and nothing_said else sampling.top_p
        chosen = [
            ("temperature", "FP32", sampling.temperature),
            (top_k, "INT32", sampling.top_k),
            (top_p, "FP32", everything),
        ]
    chosen += [
        ("repetition_penalty", "FP32", sampling.repetition_penalty),
        ("presence_penalty", "FP32", sampling.presence_penalty),
        ("frequency_penalty", "FP32", sampling.frequency_penalty),
    ]
    return [numbers(name, datatype, [value]) for name, datatype, value in chosen if value is not None]


def _seed(work: Work, facts: ModelFacts, drawn: int) -> list[Tensor]:
    name = "seed" if "seed" in facts.inputs else "random_seed"
    return [numbers(name, "UINT64", [seed_of(work, drawn)])]


def _guide(grammar: Grammar) -> list[Tensor]:
    return [
        string("guided_decoding_guide_type", _GUIDES[grammar.form]),
        string("guided_decoding_guide", grammar.text),
    ]
