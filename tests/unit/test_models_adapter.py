"""Adapters in the PEFT layout, judged against a model's layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libs.models.adapter import AdapterInvalid, fit, layer_count, listed, shares_base_prefix
from libs.models.adapter_files import read_adapter
from tests.adapters import make_adapter, write_adapter

PLACES = {
    **{f"model.layers.{layer}.self_attn.{name}": (8, size) for layer in range(2)
       for name, size in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4), ("o_proj", 8))},
    **{f"model.layers.{layer}.mlp.up_proj": (8, 16) for layer in range(2)},
    "lm_head": (8, 100),
}  # fmt: skip
QUERY = "model.layers.1.self_attn.q_proj"


def tensors(place: str = QUERY, rank: int = 2, prefix: str = "base_model.model.") -> dict[str, Any]:
    inputs, outputs = PLACES[place]
    return {
        f"{prefix}{place}.lora_A.weight": np.ones((rank, inputs), np.float32),
        f"{prefix}{place}.lora_B.weight": np.ones((outputs, rank), np.float32),
    }


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 2, "lora_alpha": 6}, 3.0),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
        ({"r": 4, "lora_alpha": 6, "rank_pattern": {"q_proj": 2}}, 3.0),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"self_attn.q_proj": 8}}, 4.0),
        ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"k_proj": 8}}, 3.0),
    ],
)
def test_the_scale_is_part_of_b(config: dict[str, Any], scale: float) -> None:
    adapter = fit(config, tensors(), PLACES)
    a, b = adapter.matrices[QUERY]
    assert np.allclose(a, 1)
    assert np.allclose(b, scale)
    assert adapter.memory_bytes == 4 * (16 + 16)


@pytest.mark.parametrize(
    ("config", "found", "faults"),
    [
        ({"r": 2, "lora_alpha": 2, "bias": "all", "peft_type": "IA3"}, tensors(), ["biases", "IA3"]),
        ({"r": True, "lora_alpha": float("nan")}, tensors(), ["r is True", "lora_alpha is nan"]),
        ({"r": 10_000, "lora_alpha": 2}, {}, ["rank is 10000", "no matrices"]),
        ({"r": 3, "lora_alpha": 2}, tensors(), ["A is 2 × 8, and has to be 3 × 8", "B is 8 × 2, and has to be 8 × 3"]),
        ({"r": 2, "lora_alpha": 2}, {"something": np.ones(3)}, ["something is no LoRA matrix"]),
        ({"r": 2, "lora_alpha": 2}, dict([*tensors().items()][:1]), [f"{QUERY} has no matrix B"]),
    ],
)
def test_all_that_is_wrong_is_told(config: dict[str, Any], found: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(AdapterInvalid) as invalid:
        fit(config, found, PLACES)
    for fault in faults:
        assert fault in str(invalid.value)


def test_unknown_modules_are_refused_by_name() -> None:
    strange = {name.replace("q_proj", "qkv"): value for name, value in tensors().items()}
    with pytest.raises(
        AdapterInvalid, match=r"changes self_attn\.qkv; the model takes changes of lm_head, mlp\.up_proj"
    ):
        fit({"r": 2, "lora_alpha": 2}, strange, PLACES)


@pytest.mark.parametrize(
    ("targets", "shared"),
    [
        (["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj"], True),
        (["lm_head"], True),
        (["model.layers.1.self_attn.k_proj"], False),
        (["model.layers.1.self_attn.v_proj", "lm_head"], False),
        (["model.layers.0.mlp.up_proj"], False),
        (["model.embed_tokens"], False),
        ([], True),
    ],
)
def test_whose_keys_and_values_are_the_bases(targets: list[str], shared: bool) -> None:
    assert shares_base_prefix(targets, layer_count(PLACES)) is shared


def test_folders_are_read(tmp_path: Path) -> None:
    made = make_adapter(tmp_path / "a", PLACES, seed=1, modules=("q_proj", "up_proj"), rank=2)
    assert read_adapter(made, PLACES).targets == {name for name in PLACES if name.endswith(("q_proj", "up_proj"))}
    write_adapter(tmp_path / "half", {name: value.astype(np.float16) for name, value in tensors().items()}, rank=2)
    assert np.allclose(read_adapter(tmp_path / "half", PLACES).matrices[QUERY][0], 1)
    with pytest.raises(AdapterInvalid, match="changes keys or values"):
        read_adapter(made, PLACES, shares_prefix=True)
    (made / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(AdapterInvalid, match="no adapter in the PEFT layout"):
        read_adapter(made, PLACES)
    with pytest.raises(AdapterInvalid, match="no adapter in the PEFT layout"):
        read_adapter(tmp_path / "nowhere", PLACES)


def test_long_lists_of_faults_are_cut() -> None:
    assert listed(["a", "b", "c"], most=2) == "a; b; and 1 more"
