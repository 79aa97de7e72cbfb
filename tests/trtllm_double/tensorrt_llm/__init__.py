"""A test double: see ../README.md."""

import time

from tensorrt_llm.flavor import FAULT, VERSION

if FAULT == "import":
    raise ImportError("libnvinfer.so.10: cannot open shared object file: No such file or directory")

from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.sampling_params import SamplingParams

__version__ = {"1.2": "1.2.1", "1.3": "1.3.0rc29"}[VERSION]

if FAULT == "old":
    del LLM.generate_async

if FAULT == "unsalted":
    setattr(LLM, "generate_async", lambda self, inputs, sampling_params=None, streaming=False: None)  # noqa: B010

if FAULT == "hang":
    time.sleep(60)

__all__ = ["LLM", "SamplingParams", "__version__"]
