"""Token ids to text: the last step of the test's ensemble, with the tensors of the published one. Runs inside
tritonserver.

Like the published one, it decodes every answer by itself: of a character whose bytes come in several answers
nothing but U+FFFD is left.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """See the module."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.tokenizer = Tokenizer.from_file(parameters["tokenizer"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer({tensor.name(): tensor.as_numpy() for tensor in each.inputs()}) for each in requests]

    def _answer(self, tensors: dict[str, Any]) -> Any:
        length = int(tensors["SEQUENCE_LENGTH"].reshape(-1)[0])
        ids = tensors["TOKENS_BATCH"].reshape(-1)[:length].tolist()
        text = self.tokenizer.decode(ids, skip_special_tokens=True).encode()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text], np.object_))])
