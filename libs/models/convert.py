"""From a GGUF file to an OpenVINO model with int8 weights. Imports the engine: only for the preparing process.

The detour over a GGUF file in half precision is deliberate. OpenVINO's own reader answers plausibly but
wrongly for Q4_1 weights, refuses F32 and is slow with Q8_0; F16 it reads right.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import nncf
import numpy as np
import openvino
import openvino_genai

from libs.models.source import SourceInvalid

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What OpenVINO's GGUF reader builds a graph for."""

Progress = Callable[[float], None]
"""Told the share that is done, 0 to 1."""


def gguf_in_half_precision(source: Path, target: Path, progress: Progress) -> dict[str, Any]:
    """Writes a GGUF file with its matrices as F16 and the rest as F32; returns what the file says of the
    model. Needs about two bytes of memory per weight. Raises SourceInvalid.
    """
    try:
        reader = gguf.GGUFReader(source)
    except ValueError as error:
        raise SourceInvalid(f"{source} cannot be read: {error}") from error
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    architecture = str(metadata["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise SourceInvalid(f"{source} has architecture {architecture!r}; the engine reads {', '.join(ARCHITECTURES)}")
    writer = gguf.GGUFWriter(target, architecture)
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        types = reader.fields[key].types
        is_array = types[0] == gguf.GGUFValueType.ARRAY
        half = gguf.LlamaFileType.MOSTLY_F16
        writer.add_key_value(
            key, int(half) if key == "general.file_type" else value, types[0], types[-1] if is_array else None
        )
    for index, tensor in enumerate(reader.tensors):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.isfinite(values).all():
            raise SourceInvalid(f"{source}: {tensor.name} holds values that are not finite")
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim == 2 else np.float32))
        if index % 10 == 0:
            progress(index / len(reader.tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return metadata


def openvino_model(source: Path, folder: Path) -> None:
    """Writes the graph and both tokenizer graphs of an F16 GGUF file into a folder.

    The engine saves them beside the GGUF, so that one must lie in `folder`.
    """
    if source.parent != folder:
        raise ValueError(f"{source} does not lie in {folder}")
    openvino_genai.ContinuousBatchingPipeline(source, _few_blocks(), "CPU", {"enable_save_ov_model": True}, {})
    openvino_genai.Tokenizer(source, enable_save_ov_model=True)


def compress_to_int8(folder: Path) -> None:
    """Replaces the model's weights by 8-bit ones with a scale and a zero point per channel."""
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, folder / "int8.xml", compress_to_fp16=False)
    del model  # it maps the file that is replaced now
    for suffix in (".bin", ".xml"):
        (folder / f"int8{suffix}").replace(folder / f"openvino_model{suffix}")


def grammar_model(folder: Path, vocabulary: int) -> None:
    """Writes a model of the same vocabulary with one layer of zeros into a folder: on it, a grammar can be
    tried out without harm (services.executor.openvino.probe). Some megabytes; loads in a tenth of a second.
    """
    width = 32
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(1024)
    writer.add_block_count(1)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((vocabulary, width), np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = openvino_genai.Tokenizer(folder.parent)
    openvino_genai.ContinuousBatchingPipeline(path, tokenizer, _few_blocks(), "CPU", enable_save_ov_model=True)
    path.unlink()


def vocabulary_size(folder: Path) -> int:
    """Columns of the model's logits. Raises SourceInvalid when the graph does not say."""
    outputs = openvino.Core().read_model(folder / "openvino_model.xml").outputs
    columns = outputs[0].partial_shape[-1]
    if columns.is_dynamic:
        raise SourceInvalid(f"{folder}: the graph does not say how large its vocabulary is")
    return int(columns.get_length())


def _few_blocks() -> openvino_genai.SchedulerConfig:
    config = openvino_genai.SchedulerConfig()
    config.num_kv_blocks = 8
    return config
