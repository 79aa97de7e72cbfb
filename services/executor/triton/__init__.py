"""Models on a Triton server with tensorrtllm_backend (docs/engines.md)."""
