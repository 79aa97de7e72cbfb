"""Clients of the KV-cache manager: the batcher's questions and the executor's reports."""
