"""GGUF models as Hugging Face folders."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from libs.models.huggingface import huggingface_folder
from libs.models.huggingface_writer import config_of, hf_name, unpermute
from libs.models.source import SourceInvalid

HEADS, WIDTH, ROWS = 2, 4, 8
RANDOM = np.random.default_rng(1)


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter does."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def test_a_permutation_is_undone() -> None:
    weights = RANDOM.standard_normal((ROWS, WIDTH))
    assert (unpermute(permute(weights, HEADS), HEADS) == weights).all()
    assert (unpermute(permute(weights[:, 0], HEADS), HEADS) == weights[:, 0]).all()


def test_rotating_halves_equals_rotating_neighbours_of_the_permuted() -> None:
    """The reason of the permutation, by the definition of both rotations."""
    head, angles = RANDOM.standard_normal(ROWS), RANDOM.standard_normal(ROWS // 2)
    low, high = head[: ROWS // 2], head[ROWS // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    halves = np.concatenate([low * cos - high * sin, high * cos + low * sin])
    pairs = permute(head, 1).reshape(-1, 2)
    even, odd = pairs[:, 0], pairs[:, 1]
    turned = np.stack([even * cos - odd * sin, odd * cos + even * sin], 1)
    assert unpermute(turned.reshape(-1), 1) == pytest.approx(halves)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_tensors_get_their_names(name: str, theirs: str) -> None:
    assert hf_name(name) == theirs


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "blk.x.attn_q.weight"])
def test_a_tensor_without_a_place_is_refused(name: str) -> None:
    with pytest.raises(SourceInvalid, match=name):
        hf_name(name)


def test_what_would_be_said_wrongly_is_refused() -> None:
    with pytest.raises(SourceInvalid, match="gemma"):
        config_of({"general.architecture": "gemma"}, True, [1])
    with pytest.raises(SourceInvalid, match="yarn"):
        config_of({"general.architecture": "llama", "llama.rope.scaling.type": "yarn"}, True, [1])


async def test_a_file_becomes_a_folder_once(tmp_path: Path) -> None:
    weights = {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}
    write_gguf(tmp_path / "tiny.gguf", weights)
    folder = await huggingface_folder(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    written = load_file(folder / "model.safetensors")
    assert {hf_name(name) for name in weights} == written.keys()
    query = unpermute(weights["blk.0.attn_q.weight"], HEADS)
    assert written["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(query, abs=2e-3)
    assert (written["model.norm.weight"] == weights["output_norm.weight"]).all()
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (HEADS, 1, WIDTH)
    assert (config["tie_word_embeddings"], config["eos_token_id"], config["vocab_size"]) == (True, 2, 260)
    assert await huggingface_folder(str(tmp_path / "tiny.gguf"), tmp_path / "cache") == folder
    assert await huggingface_folder(str(folder), tmp_path / "cache") == folder


async def test_a_source_that_is_none_says_so(tmp_path: Path) -> None:
    write_gguf(tmp_path / "odd.gguf", {"blk.0.odd.weight": np.zeros((4, 4), np.float32)})
    for source, reason in (
        (tmp_path / "odd.gguf", "blk.0.odd"),
        (tmp_path / "none", "no such file"),
        ("simulated:", "GGUF"),
    ):
        with pytest.raises(SourceInvalid, match=reason):
            await huggingface_folder(str(source), tmp_path / "cache")


def shapes() -> dict[str, tuple[int, ...]]:
    hidden = HEADS * WIDTH
    inner = {
        "attn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (WIDTH, hidden), "attn_v": (WIDTH, hidden),
        "attn_output": (hidden, hidden), "ffn_norm": (hidden,), "ffn_gate": (16, hidden), "ffn_up": (16, hidden),
        "ffn_down": (hidden, 16),
    }  # fmt: skip
    return {
        "token_embd.weight": (260, hidden),
        "output_norm.weight": (hidden,),
        **{f"blk.0.{name}.weight": shape for name, shape in inner.items()},
    }


def write_gguf(path: Path, weights: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HEADS * WIDTH)
    writer.add_feed_forward_length(16)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    byte_level = sorted({chr(n if 33 <= n < 127 else 256 + n) for n in range(256)})
    writer.add_token_list(["<pad>", "<bos>", "<eos>", *byte_level, "ab"])
    writer.add_token_types([3, 3, 3, *[1] * 257])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
