"""Passes works on to an OpenAI-compatible HTTP endpoint (docs/engines.md)."""
