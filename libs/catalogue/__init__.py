"""The catalogue: which models there are, as plain values."""

from libs.catalogue.options import OpenVino, Remote, Simulation, Triton, TrtLlm, Vllm
from libs.catalogue.spec import (
    ModelSpec,
    Price,
    Scaling,
    model_of,
    pin,
    resolve,
    salted,
    unpin,
    unsalted,
    version_of,
    with_base,
)

__all__ = [
    "ModelSpec", "OpenVino", "Price", "Remote", "Scaling", "Simulation", "Triton", "TrtLlm", "Vllm", "model_of",
    "pin", "resolve", "salted", "unpin", "unsalted", "version_of", "with_base",
]  # fmt: skip
