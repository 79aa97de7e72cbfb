"""The adapters of tests.adapters for a Hugging Face folder, and such a folder with one merged into its weights."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from libs.models.adapter import PREFIX
from tests.adapters import LINEAR, make_adapter


def adapter_for(base: Path, folder: Path, seed: int, rank: int = 8, strength: float = 0.3) -> Path:
    """An adapter of all linear layers of a model, strong enough to change short answers too."""
    weights = load_file(base / "model.safetensors")
    places = {
        name.removesuffix(".weight"): (weight.shape[1], weight.shape[0])
        for name, weight in weights.items()
        if name.removesuffix(".weight").endswith(LINEAR)
    }
    return make_adapter(folder, places, seed, LINEAR, rank=rank, strength=strength)


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """The base's folder with the adapter in its weights, in 32 bits."""
    shutil.copytree(base, folder)
    weights, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in lora if name.endswith(".lora_A.weight")]:
        place = name.removesuffix(".lora_A.weight")
        change = lora[f"{place}.lora_B.weight"] @ lora[name]  # scaled by lora_alpha / rank, which is 1
        weight = f"{place.removeprefix(PREFIX)}.weight"
        weights[weight] = weights[weight].astype(np.float32) + change
    (folder / "model.safetensors").chmod(0o600)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
