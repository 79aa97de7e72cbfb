"""The executor's side of requests."""
