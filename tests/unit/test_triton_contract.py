"""The triton engine's tensors against those that tensorrtllm_backend publishes, and what a model may lack."""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.executor.triton import contract
from services.executor.triton.contract import Flavor, ModelFacts, capabilities, faults
from tests.system.triton import published
from tests.system.triton.published import table
from tests.system.triton.repository import ModelRepository

TABLES = {
    "tensorrt_llm": (published.LANGUAGE_INPUTS, published.LANGUAGE_OUTPUTS),
    "ensemble": (published.TEXT_INPUTS, published.TEXT_OUTPUTS),
    "tensorrt_llm_bls": (published.TEXT_INPUTS, published.TEXT_OUTPUTS),
    "preprocessing": (published.PREPROCESSING_INPUTS, published.PREPROCESSING_OUTPUTS),
    "postprocessing": (published.POSTPROCESSING_INPUTS, published.POSTPROCESSING_OUTPUTS),
}
OLDER = {"random_seed"}
"""Names of earlier releases that are understood, too."""


def types(text: str) -> dict[str, str]:
    return {each.name: each.datatype.replace("STRING", "BYTES") for each in table(text)}


def facts(flavor: Flavor) -> ModelFacts:
    name = "tensorrt_llm" if flavor == "tensorrt_llm" else "ensemble"
    inputs, outputs = TABLES[name]
    steps = ("preprocessing", "tensorrt_llm", "postprocessing") if flavor == "ensemble" else ()
    return ModelFacts(name, types(inputs), types(outputs), decoupled=True, max_batch_size=64, steps=steps)


@pytest.mark.parametrize(
    ("used", "there"),
    [
        (contract.TOKEN_INPUTS, published.LANGUAGE_INPUTS),
        (contract.TOKEN_OUTPUTS, published.LANGUAGE_OUTPUTS),
        (contract.TEXT_INPUTS, published.TEXT_INPUTS),
        (contract.TEXT_OUTPUTS, published.TEXT_OUTPUTS),
    ],
    ids=["token inputs", "token outputs", "text inputs", "text outputs"],
)
def test_every_tensor_that_is_used_is_published(used: dict[str, str], there: str) -> None:
    known = types(there)
    assert {name: datatype for name, datatype in used.items() if name not in OLDER} == {
        name: known.get(name) for name in used if name not in OLDER
    }


def test_the_models_of_the_tests_have_the_published_tensors(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "repository")
    repository.add_language("tensorrt_llm")
    repository.add_text()
    for name, (inputs, outputs) in TABLES.items():
        config = model_config_pb2.ModelConfig()
        text_format.Parse((repository.models / name / "config.pbtxt").read_text(), config)
        for there, expected in ((config.input, inputs), (config.output, outputs)):
            found = {
                (each.name, model_config_pb2.DataType.Name(each.data_type).removeprefix("TYPE_"), tuple(each.dims))
                for each in there
            }
            assert found == {(each.name, each.datatype, each.dims) for each in table(expected)}
        needed = {each.name for each in config.input if not each.optional}
        assert needed == {each.name for each in table(inputs) if "optional" not in each.flags}
        assert config.model_transaction_policy.decoupled == (name in ("tensorrt_llm", "tensorrt_llm_bls"))


@pytest.mark.parametrize("flavor", ["tensorrt_llm", "ensemble", "bls"])
def test_a_published_model_fits(flavor: Flavor) -> None:
    assert faults(facts(flavor), flavor) == []
    can = capabilities(facts(flavor), flavor)
    assert can.grammars == {"json_schema", "regex", "ebnf"}
    assert (can.adapters, can.penalties, can.seeds, can.top_k, can.cached_tokens) == ("batch", True, True, True, True)
    assert (can.log_probs, can.ignore_end, can.token_ids) == (flavor == "tensorrt_llm",) * 3


def test_every_fault_is_told() -> None:
    model = facts("ensemble")
    bent = replace(
        model, decoupled=False, steps=(), outputs={}, inputs={**model.inputs, "max_tokens": "INT64", "seed": "INT32"}
    )
    assert faults(bent, "ensemble") == [
        "it is not decoupled, so it cannot stream: set model_transaction_policy { decoupled: true }",
        "it is no ensemble",
        "input max_tokens is INT64, not INT32",
        "input seed is INT32, not UINT64",
        "output text_output (BYTES) is missing",
    ]


def test_what_is_missing_is_not_claimed() -> None:
    least = ModelFacts(
        "tensorrt_llm",
        {"input_ids": "INT32", "input_lengths": "INT32", "request_output_len": "INT32", "streaming": "BOOL"},
        {"output_ids": "INT32", "sequence_length": "INT32"},
        decoupled=True,
        max_batch_size=0,
    )
    assert faults(least, "tensorrt_llm") == []
    can = capabilities(least, "tensorrt_llm")
    assert (can.grammars, can.adapters) == (frozenset(), "none")
    assert not any((can.log_probs, can.cached_tokens, can.seeds, can.penalties, can.ignore_end, can.top_k))


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("False", False), ("0", False), ("", True), ("${not_filled}", True)]
)
def test_parameters_are_flags(value: str, expected: bool) -> None:
    assert replace(facts("bls"), parameters={"x": value}).flag("x", default=True) is expected
