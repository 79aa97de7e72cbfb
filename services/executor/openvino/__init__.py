"""OpenVINO GenAI continuous batching: one child process per loaded model (docs/engines.md)."""
