"""Reading an adapter's folder: adapter_config.json and adapter_model.safetensors, as PEFT writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from libs.models.adapter import Adapter, AdapterInvalid, Array, fit, layer_count, shares_base_prefix

MOST_BYTES = 4 << 30
"""A larger file is no adapter."""


def read_adapter(folder: Path, places: Mapping[str, tuple[int, int]], shares_prefix: bool = False) -> Adapter:
    """The adapter in a folder, fit for a model with these places.

    Args:
        shares_prefix: Whether the catalogue claims that its keys and values are the base's; a false claim is a
            fault, for answers would be made from wrong ones.

    Raises AdapterInvalid.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        weights = folder / "adapter_model.safetensors"
        if (size := weights.stat().st_size) > MOST_BYTES:
            raise AdapterInvalid(f"{weights} has {size} bytes")
        entries = safetensors.deserialize(weights.read_bytes())  # type: ignore[no-untyped-call]
        tensors = {name: _tensor(name, entry) for name, entry in entries}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise AdapterInvalid(f"{folder} is no adapter in the PEFT layout: {error}") from error
    if not isinstance(config, dict):
        raise AdapterInvalid(f"{folder}/adapter_config.json is no JSON object")
    adapter = fit(config, tensors, places)
    if shares_prefix and not shares_base_prefix(adapter.targets, layer_count(places)):
        raise AdapterInvalid(
            "the catalogue says that it shares prefixes with its base, but it changes keys or values: "
            "only the last layer's query and output projections, its MLP and the head do not"
        )
    return adapter


def _tensor(name: str, entry: Mapping[str, Any]) -> Array:
    data, kind, shape = entry["data"], entry["dtype"], entry["shape"]
    if kind == "BF16":  # the upper half of a 32-bit float
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16", "F64"):
        values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).astype(np.float32)
    else:
        raise AdapterInvalid(f"{name} has elements of type {kind}")
    return values.reshape(shape)
