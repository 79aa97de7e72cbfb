"""LoRA adapters on disk, in the form that TensorRT-LLM's hf_lora_convert.py writes."""

from pathlib import Path

import numpy as np

from services.executor.engine import LoadFailed
from services.executor.triton.request import Adapter, task_id
from services.executor.triton.tensors import Tensor

WEIGHTS, CONFIG = "model.lora_weights.npy", "model.lora_config.npy"
"""[modules, values] in half precision, and [modules, 3]: module, layer, rank; a leading 1 is dropped."""


def read_adapter(name: str, source: str) -> Adapter:
    """Reads an adapter's folder. Blocks. Raises LoadFailed with everything that is wrong with it."""
    folder = Path(source).expanduser()
    missing = [file for file in (WEIGHTS, CONFIG) if not (folder / file).is_file()]
    if missing:
        raise LoadFailed(
            f"{source} is no adapter for Triton: {', '.join(missing)} missing; TensorRT-LLM's hf_lora_convert.py "
            "writes them"
        )
    try:
        weights, config = (np.load(folder / file, allow_pickle=False) for file in (WEIGHTS, CONFIG))
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{source}: {error}") from error
    weights, config = (array[0] if array.ndim == 3 and len(array) == 1 else array for array in (weights, config))
    faults = []
    if weights.ndim != 2 or weights.dtype.kind != "f":
        faults.append(f"{WEIGHTS} has shape {weights.shape} of {weights.dtype}, not [modules, values] of float16")
    if config.ndim != 2 or config.shape[-1] != 3 or config.dtype.kind != "i":
        faults.append(f"{CONFIG} has shape {config.shape} of {config.dtype}, not [modules, 3] of int32")
    if not faults and len(weights) != len(config):
        faults.append(f"{len(weights)} rows of weights, {len(config)} of configuration")
    if faults:
        raise LoadFailed(f"{source}: {'; '.join(faults)}")
    tensors = (
        Tensor("lora_weights", "FP16", weights.shape, weights.astype("<f2").tobytes()),
        Tensor("lora_config", "INT32", config.shape, config.astype("<i4").tobytes()),
    )
    return Adapter(task_id(name), tensors)
