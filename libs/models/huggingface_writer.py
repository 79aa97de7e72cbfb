"""`python -m libs.models.huggingface_writer SOURCE CACHE_DIR`: writes a GGUF model as a Hugging Face folder.

The folder has config.json, model.safetensors (matrices in half precision, as in the embedded engine's model before
its compression) and the tokenizer. Needs about two bytes of memory per weight; no torch. When the source is no
good, the exit status is INVALID, and the reason is on standard error.

GGUF keeps the rows of a llama's query and key projections in the order that rotates neighbours; Hugging Face's
rotates halves. The permutation is that of llama.cpp's converter (`LlamaModel.permute`), undone.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from libs.models.huggingface import INVALID, folder_of
from libs.models.source import SourceInvalid, resolve
from libs.models.store import build_once
from libs.models.tokenizer_files import tokenizer_folder

CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
"""`model_type` and class by GGUF architecture."""

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Array = npt.NDArray[Any]


def main() -> int:
    """Reads the two arguments."""
    try:
        source = resolve(sys.argv[1])
        if source.weights is None:
            raise SourceInvalid(f"{source.text} has no weights")
        weights, tokens = source.weights, tokenizer_folder(source, Path(sys.argv[2]))
        build_once(folder_of(source, Path(sys.argv[2])), lambda partial: write(weights, tokens, partial))
    except SourceInvalid as error:
        print(error, file=sys.stderr)
        return INVALID
    return 0


def hf_name(name: str) -> str:
    """A tensor's name in a Hugging Face llama. Raises SourceInvalid for one that has no place there."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if not stem.startswith("blk.") or not block.isdigit() or part not in INNER:
        raise SourceInvalid(f"the tensor {name} has no place in a model of these architectures: {', '.join(CLASSES)}")
    return f"model.layers.{block}.{INNER[part]}.{kind}"


def unpermute(rows: Array, heads: int) -> Array:
    """Rows of a query or key projection (or its bias) from GGUF's order into Hugging Face's."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def config_of(metadata: Mapping[str, Any], tied: bool, ends: list[int]) -> dict[str, Any]:
    """The config.json of a GGUF's metadata. Raises SourceInvalid for what it could not say rightly."""
    architecture = str(metadata["general.architecture"])
    if architecture not in CLASSES:
        raise SourceInvalid(f"architecture {architecture!r} cannot be written as such a folder: {', '.join(CLASSES)}")

    def get(name: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{name}", default)

    if (scaling := get("rope.scaling.type", "none")) != "none":
        raise SourceInvalid(f"rotary embeddings scaled by {scaling!r} are not supported; give the original folder")
    heads, width = int(get("attention.head_count")), int(get("embedding_length"))
    model_type, model_class = CLASSES[architecture]
    return {
        "architectures": [model_class],
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "head_dim": int(get("attention.key_length", width // heads)),
        "max_position_embeddings": int(get("context_length")),
        "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(get("rope.freq_base", 10_000.0)),
        "vocab_size": int(get("vocab_size", len(metadata["tokenizer.ggml.tokens"]))),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "torch_dtype": "float16",
    }


def write(source: Path, tokens: Path, folder: Path) -> None:
    """Writes a GGUF file, with the tokenizer of a folder, into a folder. Raises SourceInvalid."""
    try:
        reader = gguf.GGUFReader(source)
    except ValueError as error:
        raise SourceInvalid(f"{source} cannot be read: {error}") from error
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    ends = json.loads((tokens / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    config = config_of(metadata, tied, ends)
    tensors: dict[str, Array] = {}
    for tensor in reader.tensors:
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if not np.isfinite(values).all():
            raise SourceInvalid(f"{source}: {tensor.name} holds values that are not finite")
        part = tensor.name.rpartition(".")[0].rpartition(".")[2]
        if config["model_type"] == "llama" and part in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            values = unpermute(values, heads)
        # Copied: numpy's views of other orders would be written as they lie in memory.
        tensors[hf_name(tensor.name)] = np.array(values, np.float16 if values.ndim == 2 else np.float32, order="C")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    for file in tokens.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
