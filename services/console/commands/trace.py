"""`headrace trace`."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from libs.telemetry.span import SpanRecord
from libs.telemetry.store import find_request
from services.console.mesh.folder import StateFolder
from services.console.problem import Problem
from services.console.trace_view import render

POLL_S = 0.2
PATIENCE_S = 1.5
FRESH_S = 2.0
"""Spans reach their files within half a second; those of a trace this young may be on their way."""


def trace(state_dir: Path, request_id: str, console: Console) -> None:
    """Shows where the time of a request went. Raises Problem."""
    folder = StateFolder(state_dir)
    spans = _find(folder.traces_dir, request_id)
    if not spans:
        snapshot = folder.read()
        details = ["it may be an id of another mesh, not traced, or long forgotten"]
        if snapshot is not None and snapshot.collector:
            details = [f"this mesh sends its spans to {snapshot.collector}: look there"]
        raise Problem(f"no spans of {request_id} in {folder.traces_dir}", details)
    console.print(render(spans, console.width))


def _find(traces_dir: Path, request_id: str) -> Sequence[SpanRecord]:
    """Looks until no more spans come, or long enough."""
    spans: Sequence[SpanRecord] = ()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        before, spans = spans, find_request(traces_dir, request_id)
        if spans and time.time() - max(span.end_ns for span in spans) / 1e9 > FRESH_S:
            break
        if spans and len(spans) == len(before):
            break
        time.sleep(POLL_S if not spans else 3 * POLL_S)
    return spans
