"""LoRA adapters for tests and measurements, and the models that they make of a base when merged into its weights.

No package ships an adapter for the default model, so they are drawn at random: untrained, but strong enough that
answers with them clearly differ from the base's and from each other's.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset13 as ops
from safetensors.numpy import save_file

from libs.models.adapter import PREFIX
from libs.models.adapter_files import read_adapter

Places = Mapping[str, tuple[int, int]]

ATTENTION = ("q_proj", "v_proj")
"""What PEFT changes of a llama where nothing is said."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    folder: Path,
    places: Places,
    seed: int,
    modules: Sequence[str] = ATTENTION,
    layers: Iterable[int] | None = None,
    rank: int = 8,
    strength: float = 0.15,
) -> Path:
    """Writes an adapter in the PEFT layout into `folder` and returns it.

    Args:
        places: The base's linear layers: `prepared.facts.places`.
        seed: The same seed makes the same adapter.
        layers: None for all.
        strength: About the change of a layer's outputs for inputs of length 1 per element.
    """
    random = np.random.default_rng(seed)
    wanted = None if layers is None else {f"model.layers.{layer}" for layer in layers}
    tensors = {}
    for place, (inputs, outputs) in places.items():
        layer, _, module = place.rpartition(".")
        if module in modules and (wanted is None or layer.rpartition(".")[0] in wanted):
            a = random.standard_normal((rank, inputs), np.float32) / np.float32(np.sqrt(inputs))
            b = random.standard_normal((outputs, rank), np.float32) * np.float32(strength)
            tensors[f"{PREFIX}{place}.lora_A.weight"] = a
            tensors[f"{PREFIX}{place}.lora_B.weight"] = b
    write_adapter(folder, tensors, rank, modules)
    return folder


def write_adapter(
    folder: Path,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    rank: int = 8,
    modules: Sequence[str] = ATTENTION,
    **config: object,
) -> None:
    """Writes matrices by name, and a config of them, as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0,
        "bias": "none", "target_modules": list(modules), **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(known, indent=1), "utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors")


class Merged:
    """A model whose weights hold an adapter, computed in 32 bits and without a cache: what is true.

    Args:
        model: The prepared model's folder; its weights may be compressed.
        adapter: The adapter's folder; None for the base alone.
    """

    def __init__(self, model: Path, places: Places, adapter: Path | None) -> None:
        core = openvino.Core()
        graph = core.read_model(model / "openvino_model.xml")
        matrices = read_adapter(adapter, places).matrices if adapter is not None else {}
        for node in graph.get_ordered_ops():
            name = node.get_friendly_name().removeprefix("__module.").partition("/")[0]
            if node.get_type_name() == "MatMul" and name in matrices:
                a, b = matrices[name]
                weight = _value(node.input_value(1)) + b @ a
                node.input(1).replace_source_output(ops.constant(weight.astype(np.float32)).output(0))
        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        self._model = core.compile_model(graph, "CPU", exact)

    def log_probs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Of each token of an answer, given the prompt and the tokens in front of it."""
        ids = np.array([[*prompt, *answer]], np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.size)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request = self._model.create_infer_request()
        logits = np.asarray(request.infer(inputs)[0][0][len(prompt) - 1 : -1], np.float64)
        highest = logits.max(-1, keepdims=True)
        sums = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0]
        return [float(value) for value in logits[np.arange(len(answer)), list(answer)] - sums]


def _value(output: openvino.Output) -> npt.NDArray[np.float32]:
    """What a constant matrix, maybe compressed with a scale and a zero point per row, comes to."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return np.asarray(node.data, np.float32)
    values = [_value(node.input_value(index)) for index in range(node.get_input_size())]
    if node.get_type_name() == "Convert":
        return values[0]
    act = {"Subtract": np.subtract, "Multiply": np.multiply}[node.get_type_name()]
    return act(*values)
