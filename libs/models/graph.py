"""What the embedded engine's graph needs beside its weights. Imports the engine: only for the preparing process.

Names: the engine finds the places of a LoRA adapter by the names of the matrix multiplications, and ignores an
adapter without a word when they are others than those of an export from PyTorch, as in a graph made of a GGUF.

Masked token ids: the engine's prefix cache names blocks by the 64-bit ids of their tokens, chained from the first
block on, and by nothing else. A graph that looks only at the low bits of an id leaves the high bits free for a
salt: the same tokens with another salt are found as another prefix and computed as the same one
(services.executor.openvino.salts).
"""

import re
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops

from libs.models.source import SourceInvalid

MASK_NAME = "headrace/token_ids"

_WEIGHT = re.compile(r"model\.layers\[(\d+)\]\.([\w.]+)\.weight")
_PLACE = re.compile(r"__module\.((?:model\.layers\.\d+\.)?[\w.]+?)/.*")


def ready(folder: Path, target: Path, vocabulary: int) -> dict[str, tuple[int, int]]:
    """Makes `folder`'s graph ready (see `make_ready`) and writes it into `target`, which may be the same; nothing
    is written when it is ready. Returns the places for adapters."""
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    changed = make_ready(model, vocabulary)
    found = places(model)
    if changed:
        openvino.save_model(model, target / "ready.xml", compress_to_fp16=False)
        del model  # it maps the file that is replaced now
        for suffix in (".bin", ".xml"):
            (target / f"ready{suffix}").replace(target / f"openvino_model{suffix}")
    return found


def make_ready(model: openvino.Model, vocabulary: int) -> bool:
    """Names the multiplications and masks the token ids. False when both was done already.

    Raises SourceInvalid for a graph that takes no token ids.
    """
    named = False
    for multiplication, weight in _multiplications(model):
        old = multiplication.get_friendly_name()
        if old.startswith("__module."):
            continue
        if (match := _WEIGHT.fullmatch(weight.get_friendly_name())) is not None:
            multiplication.set_friendly_name(f"__module.model.layers.{match[1]}.{match[2]}/aten::linear/MatMul")
            named = True
        elif weight.get_friendly_name() in ("model.embed_tokens.weight", "lm_head.weight"):
            multiplication.set_friendly_name("__module.lm_head/aten::linear/MatMul")
            named = True
    return _mask(model, vocabulary) or named


def places(model: openvino.Model) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer that an adapter can change, by the layer's name in PyTorch."""
    found = {}
    for multiplication, _weight in _multiplications(model):
        if (match := _PLACE.fullmatch(multiplication.get_friendly_name())) is None:
            continue
        shape = multiplication.input_value(1).get_partial_shape()
        outputs, inputs = (
            (shape[0], shape[1]) if multiplication.get_attributes()["transpose_b"] else (shape[1], shape[0])
        )
        found[match[1]] = (int(inputs.get_length()), int(outputs.get_length()))
    return found


def _mask(model: openvino.Model, vocabulary: int) -> bool:
    parameters = [node for node in model.get_parameters() if "input_ids" in node.output(0).get_names()]
    if not parameters:
        raise SourceInvalid("the graph has no input 'input_ids'")
    output = parameters[0].output(0)
    readers = [reader for reader in output.get_target_inputs() if reader.get_node().get_type_name() != "ShapeOf"]
    if any(reader.get_node().get_friendly_name() == MASK_NAME for reader in readers):
        return False
    bits = (vocabulary - 1).bit_length()
    masked = ops.bitwise_and(output, ops.constant(np.array((1 << bits) - 1, np.int64)))
    masked.set_friendly_name(MASK_NAME)
    # Prompt lookup fills up with the id -1, whose embedding nobody looks at but which has to exist.
    existing = ops.minimum(masked, ops.constant(np.array(vocabulary - 1, np.int64)))
    for reader in readers:
        reader.replace_source_output(existing.output(0))
    model.validate_nodes_and_infer_types()
    return True


def _multiplications(model: openvino.Model) -> list[tuple[openvino.Node, openvino.Node]]:
    """Multiplications by constant matrices, with the constants, which may be compressed."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input_value(1).get_node()
        while weight.get_input_size():
            weight = weight.input_value(0).get_node()
        if weight.get_type_name() == "Constant" and len(weight.get_output_shape(0)) >= 2:
            found.append((node, weight))
    return found
