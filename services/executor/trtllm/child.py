"""`python -m services.executor.trtllm.child FD`: the process of one model in TensorRT-LLM."""

import sys

from services.executor.child.loop import serve
from services.executor.trtllm.model import TrtLlmModel
from services.executor.trtllm.wire import Load

if __name__ == "__main__":
    sys.exit(serve(Load, TrtLlmModel))
