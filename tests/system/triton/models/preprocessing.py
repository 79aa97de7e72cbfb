"""Text to token ids: the first step of the test's ensemble, with the tensors of the published one. Runs inside
tritonserver."""

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
        self.end_id = int(parameters["end_id"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer({tensor.name(): tensor.as_numpy() for tensor in each.inputs()}) for each in requests]

    def _answer(self, tensors: dict[str, Any]) -> Any:
        text = tensors["QUERY"].reshape(-1)[0].decode()
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        end_id = tensors.get("END_ID", np.array([[self.end_id]], np.int32))
        outputs = {
            "INPUT_ID": np.array([ids], np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            "REQUEST_OUTPUT_LEN": tensors["REQUEST_OUTPUT_LEN"].astype(np.int32),
            "OUT_END_ID": end_id.reshape(1, 1).astype(np.int32),
            "OUT_PAD_ID": tensors.get("PAD_ID", end_id).reshape(1, 1).astype(np.int32),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])
