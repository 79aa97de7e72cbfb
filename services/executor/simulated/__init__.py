"""The simulated engine: real accounting, invented tokens, time by a formula."""
