"""The process that a snapshot speaks of, as the system has it now."""

import psutil

from services.console.mesh.snapshot import ComponentSnapshot

CLOCK_SLACK_S = 5.0
"""The system rounds when it says when a process was started, and its wall clock may have been set."""


def found(component: ComponentSnapshot) -> psutil.Process | None:
    """The component's process; None where it does not run, or where another one only has its pid."""
    if component.pid is None or component.started is None:
        return None
    try:
        process = psutil.Process(component.pid)
        return process if abs(process.create_time() - component.started) < CLOCK_SLACK_S else None
    except psutil.NoSuchProcess:
        return None
