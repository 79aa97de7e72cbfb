"""LoRA adapters in the PEFT layout, judged against the model that they shall change. Pure.

A LoRA adapter adds `scale · B · A` to the weights of some linear layers (Hu et al., 2021); its config.json gives
the rank and alpha, its tensors A (rank × inputs) and B (outputs × rank) by layer. The scale is alpha / rank, or
alpha / √rank with `use_rslora` (Kalajdzievski, 2023).
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

MOST_RANK = 512

PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")

_UNSUPPORTED = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
    "modules_to_save": "whole modules (modules_to_save)",
    "lora_bias": "biases (lora_bias)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "megatron_config": "Megatron layers",
}
"""What changes more of a model than A and B say."""


class AdapterInvalid(Exception):
    """The folder holds no adapter that fits the model; the text says everything that is wrong, to an operator."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that fits."""

    matrices: Mapping[str, tuple[Array, Array]]
    """A and B by layer, "model.layers.0.mlp.up_proj"; the scale is part of B."""

    @property
    def targets(self) -> frozenset[str]:
        """The layers that it changes."""
        return frozenset(self.matrices)

    @property
    def memory_bytes(self) -> int:
        """Of the matrices, in 32 bits."""
        return sum(a.nbytes + b.nbytes for a, b in self.matrices.values())


def fit(config: Mapping[str, Any], tensors: Mapping[str, Array], places: Mapping[str, tuple[int, int]]) -> Adapter:
    """The adapter that a folder's content describes.

    Args:
        config: adapter_config.json.
        tensors: adapter_model.safetensors, by name.
        places: Inputs and outputs of the model's linear layers, by name.

    Raises AdapterInvalid with everything that is wrong.
    """
    faults = _config_faults(config)
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        if (match := _TENSOR.fullmatch(name)) is None:
            faults.append(f"{name} is no LoRA matrix")
        else:
            halves.setdefault(match[1], {})[match[2]] = tensor
    if not tensors:
        faults.append("it holds no matrices")
    strange = sorted({_module(layer) for layer in halves if layer not in places})
    if strange:
        takes = sorted({_module(layer) for layer in places})
        faults.append(f"it changes {', '.join(strange)}; the model takes changes of {', '.join(takes)}")
    matrices = {}
    for layer, found in halves.items():
        if layer in places and not (wrong := _layer_faults(layer, found, places[layer], config)):
            matrices[layer] = (found["A"], found["B"] * np.float32(_scale(layer, config)))
        elif layer in places:
            faults += wrong
    if faults:
        raise AdapterInvalid(listed(faults))
    return Adapter(matrices)


def shares_base_prefix(targets: Iterable[str], layers: int) -> bool:
    """Whether a model with these layers changed computes the same keys and values as without.

    Keys and values of a layer depend on its own key and value projections and on all layers in front. So only
    what lies behind the last layer's keys and values may change: its query and output projections, its MLP, and
    the head.
    """
    for target in targets:
        match = _LAYER.fullmatch(target)
        if match is None:
            if target != "lm_head":
                return False
        elif int(match[1]) != layers - 1 or match[2].endswith((".k_proj", ".v_proj", ".qkv_proj")):
            return False
    return True


def layer_count(places: Iterable[str]) -> int:
    """How many layers a model with these places has."""
    return 1 + max((int(match[1]) for place in places if (match := _LAYER.fullmatch(place))), default=-1)


def listed(faults: list[str], most: int = 8) -> str:
    """Faults as one text; of many the first, and how many more there are."""
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "; ".join([*faults[:most], *more])


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    faults = []
    if config.get("peft_type", "LORA") != "LORA":
        faults.append(f"its type is {config['peft_type']}, not LORA")
    faults += [f"{what} are not supported" for key, what in _UNSUPPORTED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        faults.append("biases are not supported")
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            faults.append(f"{key} is {value!r}, not a number above 0")
    if isinstance(config.get("r"), int) and config["r"] > MOST_RANK:
        faults.append(f"its rank is {config['r']}, above {MOST_RANK}")
    return faults


def _layer_faults(
    layer: str, found: Mapping[str, Array], place: tuple[int, int], config: Mapping[str, Any]
) -> list[str]:
    missing = [f"{layer} has no matrix {half}" for half in ("A", "B") if half not in found]
    if missing:
        return missing
    inputs, outputs = place
    rank = _by_pattern(layer, config, "rank_pattern", config.get("r"))
    faults = []
    for half, wanted in (("A", (rank, inputs)), ("B", (outputs, rank))):
        if found[half].shape != wanted:
            faults.append(f"{layer}: {half} is {_shape(found[half].shape)}, and has to be {_shape(wanted)}")
        elif not np.isfinite(found[half]).all():
            faults.append(f"{layer}: {half} holds values that are not finite")
    if not faults and not np.isfinite(_scale(layer, config)):
        faults.append(f"{layer}: its alpha is not a number")
    return faults


def _scale(layer: str, config: Mapping[str, Any]) -> float:
    try:
        rank = float(_by_pattern(layer, config, "rank_pattern", config.get("r")))
        alpha = float(_by_pattern(layer, config, "alpha_pattern", config.get("lora_alpha")))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan  # _config_faults tells


def _by_pattern(layer: str, config: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    """PEFT's patterns are regular expressions for the end of a name; only plain names are taken as such."""
    for pattern, value in (config.get(key) or {}).items():
        if layer == pattern or layer.endswith(f".{pattern}"):
            return value
    return otherwise


def _module(layer: str) -> str:
    match = _LAYER.fullmatch(layer)
    return match[2] if match else layer


def _shape(shape: tuple[Any, ...]) -> str:
    return " × ".join(str(size) for size in shape)
