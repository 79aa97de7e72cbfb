"""Text in, text out, by calls between models: the test's `tensorrt_llm_bls`. Runs inside tritonserver.

What counts is as in the published one: it answers one request at a time per instance, asks the model under an
id of its own, looks for no cancellation, and with `accumulate_tokens` decodes all tokens so far each time.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PREPROCESSED = ["INPUT_ID", "REQUEST_INPUT_LEN", "REQUEST_OUTPUT_LEN", "OUT_END_ID", "OUT_PAD_ID"]
RENAMED = {"top_k": "runtime_top_k", "top_p": "runtime_top_p", "stream": "streaming"}
THROUGH = ["kv_cache_reused_blocks", "num_output_tokens"]
HERE = {"text_input", "max_tokens", "end_id", "pad_id"}


class TritonPythonModel:
    """See the module."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.accumulate = parameters["accumulate_tokens"]["string_value"] == "true"
        self.model = parameters["tensorrt_llm_model_name"]["string_value"]

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                for outputs in self._answers({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}):
                    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
                    sender.send(pb_utils.InferenceResponse(tensors))
                sender.send(flags=FINAL)
            except pb_utils.TritonModelException as error:
                told = pb_utils.TritonError(str(error))
                sender.send(pb_utils.InferenceResponse(output_tensors=[], error=told), flags=FINAL)

    def _answers(self, tensors: dict[str, Any]) -> Iterator[Any]:
        query = {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens", "END_ID": "end_id", "PAD_ID": "pad_id"}
        asked = [
            pb_utils.Tensor(theirs, tensors[ours].reshape(1, 1)) for theirs, ours in query.items() if ours in tensors
        ]
        prepared = named(call("preprocessing", asked, PREPROCESSED))
        inputs = {
            "input_ids": prepared["INPUT_ID"], "input_lengths": prepared["REQUEST_INPUT_LEN"],
            "request_output_len": prepared["REQUEST_OUTPUT_LEN"], "end_id": prepared["OUT_END_ID"],
            "pad_id": prepared["OUT_PAD_ID"],
        }  # fmt: skip
        for name, value in tensors.items():
            if name not in HERE:
                matrix = value if name in ("lora_weights", "lora_config") else value.reshape(1, 1)
                inputs[RENAMED.get(name, name)] = matrix
        request = pb_utils.InferenceRequest(
            model_name=self.model,
            request_id=str(uuid.uuid4()),
            requested_output_names=["output_ids", "sequence_length", *THROUGH],
            inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
        )
        so_far: list[int] = []
        for answer in request.exec(decoupled=True):
            if answer.has_error():
                raise pb_utils.TritonModelException(answer.error().message())
            if not answer.output_tensors():
                continue
            made = named(answer)
            tokens = made["output_ids"].reshape(-1).tolist()
            so_far = [*so_far, *tokens] if self.accumulate else tokens
            decode = [
                pb_utils.Tensor("TOKENS_BATCH", np.array([[so_far]], np.int32).reshape(1, 1, -1)),
                pb_utils.Tensor("SEQUENCE_LENGTH", np.array([[len(so_far)]], np.int32)),
            ]
            text = named(call("postprocessing", decode, ["OUTPUT"]))["OUTPUT"]
            yield {"text_output": text, **{name: made[name] for name in THROUGH if name in made}}


def call(model: str, inputs: list[Any], outputs: list[str]) -> Any:
    """One answer of another model."""
    answer = pb_utils.InferenceRequest(model_name=model, requested_output_names=outputs, inputs=inputs).exec()
    if answer.has_error():
        raise pb_utils.TritonModelException(answer.error().message())
    return answer


def named(answer: Any) -> dict[str, Any]:
    """The tensors of an answer by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
