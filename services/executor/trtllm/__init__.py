"""TensorRT-LLM through its LLM API, versions 1.2 and 1.3, in a process of its own."""
