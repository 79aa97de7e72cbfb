"""Adapters in the form that OpenVINO GenAI takes."""

from collections.abc import Mapping

import numpy as np
import openvino
import openvino_genai as genai
from safetensors.numpy import save

from libs.models.adapter import PREFIX, Array


def engine_adapter(matrices: Mapping[str, tuple[Array, Array]]) -> genai.Adapter:
    """An adapter of A and B by layer. The engine keeps the matrices."""
    tensors = {
        f"{PREFIX}{layer}.lora_{half}.weight": np.ascontiguousarray(values, np.float32)
        for layer, halves in matrices.items()
        for half, values in zip("AB", halves, strict=True)
    }
    return genai.Adapter(openvino.Tensor(np.frombuffer(save(tensors), np.uint8).copy()))


def uniform(places: Mapping[str, tuple[int, int]], strength: float) -> genai.Adapter:
    """An adapter of rank 1 that adds `strength` times the inputs' mean to every output of these layers."""
    return engine_adapter(
        {
            layer: (np.full((1, inputs), 1 / inputs, np.float32), np.full((outputs, 1), strength, np.float32))
            for layer, (inputs, outputs) in places.items()
        }
    )
