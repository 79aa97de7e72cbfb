"""The tensors of tensorrtllm_backend's models, as its config.pbtxt files name them.

Taken from all_models/inflight_batcher_llm in the TensorRT-LLM repository (triton_backend, 2026), without those
for encoders, images, draft models and disaggregated serving. A line: name, data type, dims, and flags:
`optional`, `scalar` (a reshape to no dimension), `ragged`.
"""

from dataclasses import dataclass

LANGUAGE_INPUTS = """
input_ids                   INT32   -1     optional ragged
input_lengths               INT32   1      scalar
request_output_len          INT32   1      scalar
end_id                      INT32   1      optional scalar
pad_id                      INT32   1      optional scalar
stop_words_list             INT32   2,-1   optional ragged
bad_words_list              INT32   2,-1   optional ragged
embedding_bias              FP32    -1     optional ragged
beam_width                  INT32   1      optional scalar
temperature                 FP32    1      optional scalar
runtime_top_k               INT32   1      optional scalar
runtime_top_p               FP32    1      optional scalar
len_penalty                 FP32    1      optional scalar
repetition_penalty          FP32    1      optional scalar
min_tokens                  INT32   1      optional scalar
presence_penalty            FP32    1      optional scalar
frequency_penalty           FP32    1      optional scalar
seed                        UINT64  1      optional scalar
return_log_probs            BOOL    1      optional scalar
return_context_logits       BOOL    1      optional scalar
return_generation_logits    BOOL    1      optional scalar
return_perf_metrics         BOOL    1      optional scalar
return_num_output_tokens    BOOL    1      optional scalar
exclude_input_in_output     BOOL    1      optional scalar
stop                        BOOL    1      optional scalar
streaming                   BOOL    1      optional scalar
lora_task_id                UINT64  1      optional scalar
lora_weights                FP16    -1,-1  optional ragged
lora_config                 INT32   -1,3   optional ragged
guided_decoding_guide_type  STRING  1      optional ragged
guided_decoding_guide       STRING  1      optional ragged
"""

LANGUAGE_OUTPUTS = """
output_ids                   INT32  -1,-1
sequence_length              INT32  -1
cum_log_probs                FP32   -1
output_log_probs             FP32   -1,-1
kv_cache_alloc_new_blocks    INT32  1
kv_cache_reused_blocks       INT32  1
kv_cache_alloc_total_blocks  INT32  1
num_output_tokens            INT32  1
"""

TEXT_INPUTS = """
text_input                  STRING  1
max_tokens                  INT32   1
end_id                      INT32   1      optional
pad_id                      INT32   1      optional
top_k                       INT32   1      optional
top_p                       FP32    1      optional
temperature                 FP32    1      optional
repetition_penalty          FP32    1      optional
min_tokens                  INT32   1      optional
presence_penalty            FP32    1      optional
frequency_penalty           FP32    1      optional
seed                        UINT64  1      optional
return_log_probs            BOOL    1      optional
return_perf_metrics         BOOL    1      optional
return_num_output_tokens    BOOL    1      optional
exclude_input_in_output     BOOL    1      optional
stream                      BOOL    1      optional
lora_task_id                UINT64  1      optional
lora_weights                FP16    -1,-1  optional ragged
lora_config                 INT32   -1,3   optional ragged
guided_decoding_guide_type  STRING  1      optional
guided_decoding_guide       STRING  1      optional
"""

TEXT_OUTPUTS = """
text_output                  STRING  -1
cum_log_probs                FP32    -1
output_log_probs             FP32    -1,-1
kv_cache_alloc_new_blocks    INT32   1
kv_cache_reused_blocks       INT32   1
kv_cache_alloc_total_blocks  INT32   1
num_output_tokens            INT32   1
"""

PREPROCESSING_INPUTS = """
QUERY               STRING  1
REQUEST_OUTPUT_LEN  INT32   1
END_ID              INT32   1  optional
PAD_ID              INT32   1  optional
"""

PREPROCESSING_OUTPUTS = """
INPUT_ID            INT32  -1
REQUEST_INPUT_LEN   INT32  1
REQUEST_OUTPUT_LEN  INT32  -1
OUT_END_ID          INT32  1
OUT_PAD_ID          INT32  1
"""

POSTPROCESSING_INPUTS = """
TOKENS_BATCH     INT32  -1,-1
SEQUENCE_LENGTH  INT32  -1
"""

POSTPROCESSING_OUTPUTS = """
OUTPUT  STRING  -1
"""


@dataclass(frozen=True, slots=True)
class Published:
    """A tensor of a config.pbtxt."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    flags: frozenset[str]

    @property
    def pbtxt(self) -> str:
        """As it stands between the brackets of `input` or `output`."""
        lines = [
            f'name: "{self.name}"',
            f"data_type: TYPE_{self.datatype}",
            f"dims: [ {', '.join(map(str, self.dims))} ]",
        ]
        if "scalar" in self.flags:
            lines.append("reshape: { shape: [ ] }")
        if "optional" in self.flags:
            lines.append("optional: true")
        if "ragged" in self.flags:
            lines.append("allow_ragged_batch: true")
        return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def table(text: str) -> tuple[Published, ...]:
    """The tensors of one of the tables above."""
    rows = (line.split() for line in text.strip().splitlines())
    return tuple(
        Published(name, datatype, tuple(int(each) for each in dims.split(",")), frozenset(flags))
        for name, datatype, dims, *flags in rows
    )
