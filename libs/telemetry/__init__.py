"""Traces, metrics and logs of every process; all their names are in `names`. Start at `docs/telemetry.md`."""
