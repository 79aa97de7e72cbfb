"""The TensorRT backend."""

from tensorrt_llm.llmapi import llm

LLM = llm.TrtLLM

__all__ = ["LLM"]
