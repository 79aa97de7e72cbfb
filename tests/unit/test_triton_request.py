"""Works as tensors: what is sent, and what no server could take."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tokenizers import Tokenizer as Encoder

from libs.errors import NotSupported
from libs.lane.work import Grammar, Sampling, Tier, Work
from services.executor.stream.prompt import PromptText
from services.executor.triton import request
from services.executor.triton.request import Adapter, Limits
from services.executor.triton.tensors import Tensor, numbers, string
from tests.system.triton.tokenizer import write_tokenizer
from tests.unit.test_triton_contract import facts

LIMITS = Limits(context_tokens=100, vocabulary=50, ends=(7, 8, 9), pad_id=0)
WORK = Work("r", "t", Tier.INTERACTIVE, "m", [1, 2, 3], Sampling(max_tokens=10), deadline=float("inf"))


def told(work: Work, limits: Limits = LIMITS, from_start: bool = False) -> dict[str, list[float]]:
    model = facts("tensorrt_llm")
    tensors = request.inputs(work, "tensorrt_llm", model, limits, [*work.prompt], 10, from_start=from_start)
    return {each.name: [*each.numbers] for each in tensors if each.datatype != "BYTES"}


def test_the_tensors_of_a_plain_work() -> None:
    tensors = told(WORK)
    seed = tensors.pop("seed")
    assert tensors == {
        "input_ids": [1, 2, 3], "input_lengths": [3], "request_output_len": [10], "streaming": [True],
        "exclude_input_in_output": [True], "end_id": [7], "pad_id": [0], "stop_words_list": [8, 9, 1, 2],
        "return_perf_metrics": [True],
    }  # fmt: skip
    assert told(WORK)["seed"] == seed != told(structs.replace(WORK, request_id="other"))["seed"]
    resumed = structs.replace(WORK, resumed=[1, 2])
    assert told(resumed)["seed"] == [seed[0] + 2]
    assert told(resumed, from_start=True)["seed"] == seed, "the same random numbers, since all is made again"


def test_the_batch_is_in_front_where_there_is_one() -> None:
    model = facts("tensorrt_llm")
    for batch, shapes in ((64, {(1, 3), (1, 1), (1, 2, 2)}), (0, {(3,), (1,), (2, 2)})):
        tensors = request.inputs(WORK, "tensorrt_llm", replace(model, max_batch_size=batch), LIMITS, [1, 2, 3], 10)
        assert {each.shape for each in tensors} == shapes


def test_an_ignored_end_is_no_token() -> None:
    tensors = told(structs.replace(WORK, sampling=Sampling(10, ignore_end=True)))
    assert tensors["end_id"] == [-1]
    assert "stop_words_list" not in tensors


def test_an_end_that_nobody_knows_is_the_servers_matter() -> None:
    assert not told(WORK, replace(LIMITS, ends=(), pad_id=None)).keys() & {"end_id", "pad_id", "stop_words_list"}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1, temperature=0.0, top_k=5, top_p=0.5), {"runtime_top_k": [1]}),
        (Sampling(1, temperature=0.5), {"temperature": [0.5], "runtime_top_p": [1.0]}),
        (Sampling(1, temperature=0.5, top_k=5), {"temperature": [0.5], "runtime_top_k": [5]}),
        (Sampling(1, top_p=0.5), {"runtime_top_p": [0.5]}),
        (Sampling(1), {}),
    ],
)
def test_sampling(sampling: Sampling, expected: dict[str, list[float]]) -> None:
    tensors = told(structs.replace(WORK, sampling=sampling))
    assert {name: tensors[name] for name in ("temperature", "runtime_top_k", "runtime_top_p") if name in tensors} == (
        expected
    )


def test_older_names_and_missing_inputs() -> None:
    model = facts("tensorrt_llm")
    inputs = {name: datatype for name, datatype in model.inputs.items() if name not in ("seed", "pad_id")}
    old = replace(model, inputs={**inputs, "random_seed": "UINT64"})
    work = structs.replace(WORK, sampling=Sampling(10, seed=3))
    names = {each.name for each in request.inputs(work, "tensorrt_llm", old, LIMITS, [1], 10)}
    assert "random_seed" in names
    assert not names & {"seed", "pad_id"}


def test_text_grammar_and_adapter() -> None:
    weights = Tensor("lora_weights", "FP16", (2, 4), bytes(16))
    work = structs.replace(WORK, grammar=Grammar("ebnf", "root ::= \u00fc"))
    for with_weights in (False, True):
        tensors = {
            each.name: each
            for each in request.inputs(
                work, "ensemble", facts("ensemble"), LIMITS, "text", 10, Adapter(5, (weights,)), with_weights
            )
        }
        assert tensors["text_input"].strings == [b"text"]
        assert [*tensors["max_tokens"].numbers, *tensors["lora_task_id"].numbers] == [10, 5]
        assert tensors["guided_decoding_guide_type"].strings == [b"ebnf_grammar"]
        assert tensors["guided_decoding_guide"].strings == ["root ::= \u00fc".encode()]
        assert ("lora_weights" in tensors) is with_weights


def test_a_stop_asks_for_nothing() -> None:
    tensors = {each.name: [*each.numbers] for each in request.stop(facts("tensorrt_llm"))}
    assert tensors == {"input_ids": [0], "input_lengths": [1], "request_output_len": [0], "stop": [True]}


def test_an_answer_ends_with_the_context() -> None:
    work = structs.replace(WORK, sampling=Sampling(200), resumed=[1, 2])
    assert request.answer_tokens(work, LIMITS, from_start=False) == 95
    assert request.answer_tokens(work, LIMITS, from_start=True) == 97
    assert request.answer_tokens(work, replace(LIMITS, context_tokens=0), from_start=False) == 198


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="top_k"):
        numbers("top_k", "INT32", [2**31])
    with pytest.raises(ValueError, match="has type FP16"):
        Tensor("weights", "FP16", (1,), b"ab").numbers  # noqa: B018
    with pytest.raises(ValueError, match="has 3 bytes"):
        Tensor("ids", "INT32", (1,), b"abc").numbers  # noqa: B018
    with pytest.raises(ValueError, match="middle of a length"):
        Tensor("text", "BYTES", (1,), b"abc").strings  # noqa: B018


@given(st.text())
def test_strings_come_back(text: str) -> None:
    assert string("x", text).strings == [text.encode()]


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_numbers_come_back(values: list[int]) -> None:
    assert [*numbers("x", "INT32", values).numbers] == values


def test_prompts_as_text(tmp_path: Path) -> None:
    world = write_tokenizer(tmp_path / "tokenizer")
    encoder = Encoder.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    prompts = PromptText(encoder)
    assert not prompts.adds_tokens
    chat = [world["end"], *encoder.encode("a river").ids]
    assert prompts.text(chat) == "<|end|>a river"
    encoder.encode_special_tokens = True
    written = encoder.encode("<|end|>").ids
    encoder.encode_special_tokens = False
    assert len(written) > 1
    with pytest.raises(NotSupported, match="control token"):
        prompts.text(written)
