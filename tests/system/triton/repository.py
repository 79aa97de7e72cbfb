"""Writes a model repository for the tests' tritonserver: config.pbtxt, code and tokenizer of every model."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.system.triton import published
from tests.system.triton.published import table
from tests.system.triton.tokenizer import write_tokenizer

CODE = Path(__file__).parent / "models"

_THROUGH = {
    "top_k": "runtime_top_k", "top_p": "runtime_top_p", "stream": "streaming",
    **{
        name: name
        for name in (
            "temperature", "repetition_penalty", "min_tokens", "presence_penalty", "frequency_penalty", "seed",
            "return_log_probs", "return_perf_metrics", "return_num_output_tokens", "exclude_input_in_output",
            "lora_task_id", "lora_weights",
            "lora_config", "guided_decoding_guide_type", "guided_decoding_guide",
        )
    },
}  # fmt: skip
"""Inputs of the ensemble that go to the model as they are."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a language model of the tests is like."""

    step_s: float = 0.005
    slots: int = 32
    blocks: int = 512
    block_tokens: int = 32
    max_input_len: int = 256
    adapters: int = 2
    """As many it holds; the least recently used goes."""
    metrics: bool = True
    """Whether it tells its blocks on /metrics, as the C++ backend does."""


class ModelRepository:
    """A folder that tritonserver takes its models from.

    Args:
        folder: Where; `models` in it is the repository, `tokenizer` the tokenizer of all models.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.tokenizer = folder / "tokenizer"
        self.models.mkdir(parents=True)
        self.world = write_tokenizer(self.tokenizer)
        (folder / "world.json").write_text(json.dumps(self.world))

    @property
    def record(self) -> Path:
        """A line of JSON for every request that reached a language model."""
        return self.folder / "record.jsonl"

    def asked(self, model_input: str = "") -> list[dict[str, object]]:
        """The tensors of the requests that reached a language model; only those with `model_input`, if given."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        tensors = [json.loads(line)["tensors"] for line in lines]
        return [each for each in tensors if not model_input or model_input in each]

    def add_language(self, name: str, language: Language = Language()) -> None:
        """A model with the tensors of `tensorrt_llm`."""
        parameters = {
            "world": self.folder / "world.json", "record": self.record, "step_s": language.step_s,
            "slots": language.slots, "blocks": language.blocks, "block_tokens": language.block_tokens,
            "max_input_len": language.max_input_len, "adapters": language.adapters,
            "metrics": "yes" if language.metrics else "no",
        }  # fmt: skip
        inputs, outputs = published.LANGUAGE_INPUTS, published.LANGUAGE_OUTPUTS
        self._write(name, "language.py", inputs, outputs, parameters, decoupled=True, batching=True)

    def add_text(self, accumulate_tokens: bool = False) -> None:
        """The ensemble and `tensorrt_llm_bls` over the model `tensorrt_llm`, and the steps of both."""
        tokenizer = {"tokenizer": self.tokenizer / "tokenizer.json", "end_id": self.world["end"]}
        steps = (
            ("preprocessing", published.PREPROCESSING_INPUTS, published.PREPROCESSING_OUTPUTS),
            ("postprocessing", published.POSTPROCESSING_INPUTS, published.POSTPROCESSING_OUTPUTS),
        )
        for name, inputs, outputs in steps:
            self._write(name, f"{name}.py", inputs, outputs, tokenizer)
        parameters = {
            "accumulate_tokens": str(accumulate_tokens).lower(), "tensorrt_llm_model_name": "tensorrt_llm",
        }  # fmt: skip
        inputs, outputs = published.TEXT_INPUTS, published.TEXT_OUTPUTS
        self._write("tensorrt_llm_bls", "business_logic.py", inputs, outputs, parameters, decoupled=True, instances=3)
        self._write_ensemble()

    def alter(self, model: str, old: str, new: str) -> None:
        """Replaces text in a model's config.pbtxt."""
        config = self.models / model / "config.pbtxt"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))

    def _write(
        self, name: str, code: str, inputs: str, outputs: str, parameters: Mapping[str, object], *,
        decoupled: bool = False, batching: bool = False, instances: int = 1,
    ) -> None:  # fmt: skip
        config = [f'name: "{name}"', 'backend: "python"', "max_batch_size: 64", *_tensors(inputs, outputs)]
        if decoupled:
            config.append("model_transaction_policy { decoupled: true }")
        if batching:
            config.append("dynamic_batching { }")
        for key, value in parameters.items():
            config.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
        config.append(f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]")
        (self.models / name / "1").mkdir(parents=True)
        (self.models / name / "config.pbtxt").write_text("\n".join(config) + "\n")
        shutil.copy(CODE / code, self.models / name / "1" / "model.py")

    def _write_ensemble(self) -> None:
        before = {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens", "END_ID": "end_id", "PAD_ID": "pad_id"}
        prepared = {name: f"_{name}" for name in ("INPUT_ID", "REQUEST_INPUT_LEN", "REQUEST_OUTPUT_LEN")}
        prepared |= {"OUT_END_ID": "_END_ID", "OUT_PAD_ID": "_PAD_ID"}
        model_inputs = {
            "input_ids": "_INPUT_ID", "input_lengths": "_REQUEST_INPUT_LEN",
            "request_output_len": "_REQUEST_OUTPUT_LEN", "end_id": "_END_ID", "pad_id": "_PAD_ID",
            **{theirs: ours for ours, theirs in _THROUGH.items()},
        }  # fmt: skip
        through = [each.name for each in table(published.TEXT_OUTPUTS) if each.name != "text_output"]
        model_outputs = {"output_ids": "_TOKENS", "sequence_length": "_LENGTH", **{name: name for name in through}}
        steps = [
            _step("preprocessing", before, prepared),
            _step("tensorrt_llm", model_inputs, model_outputs),
            _step(
                "postprocessing", {"TOKENS_BATCH": "_TOKENS", "SEQUENCE_LENGTH": "_LENGTH"}, {"OUTPUT": "text_output"}
            ),
        ]
        config = ['name: "ensemble"', 'platform: "ensemble"', "max_batch_size: 64"]
        config += _tensors(published.TEXT_INPUTS, published.TEXT_OUTPUTS)
        config.append(f"ensemble_scheduling {{ step [\n{','.join(steps)}\n] }}")
        (self.models / "ensemble" / "1").mkdir(parents=True)
        (self.models / "ensemble" / "config.pbtxt").write_text("\n".join(config) + "\n")


def _tensors(inputs: str, outputs: str) -> list[str]:
    return [
        f"{kind} [\n" + ",\n".join(each.pbtxt for each in table(text)) + "\n]"
        for kind, text in (("input", inputs), ("output", outputs))
    ]


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'
