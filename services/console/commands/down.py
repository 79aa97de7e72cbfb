"""`headrace down`."""

import os
import signal
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.text import Text

from services.console.mesh.folder import StateFolder
from services.console.mesh.found import found
from services.console.mesh.snapshot import MeshSnapshot
from services.console.problem import Problem

POLL_S = 0.05


def down(state_dir: Path, patience_s: float, console: Console) -> None:
    """Stops the mesh in order; what is not gone after `patience_s` seconds is killed. Raises Problem."""
    folder = StateFolder(state_dir)
    supervisor, snapshot = folder.owner(), folder.read()
    if supervisor is None:
        left = _survivors(snapshot)
        _kill(left)
        folder.mesh_file.unlink(missing_ok=True)
        what = f"; {len(left)} processes that it had left are gone now" if left else ""
        console.print(Text(f"No mesh runs in {state_dir}{what}."))
        return
    started = time.monotonic()
    os.kill(supervisor, signal.SIGTERM)
    with console.status("stopping the mesh"):
        while folder.owner() == supervisor and time.monotonic() - started < patience_s:
            time.sleep(POLL_S)
    if folder.owner() == supervisor:
        _kill([psutil.Process(supervisor), *_survivors(snapshot)])
    left = _survivors(snapshot)
    _kill(left)
    if any(process.is_running() for process in left):
        raise Problem("some processes do not go", [f"pid {process.pid}" for process in left])
    folder.mesh_file.unlink(missing_ok=True)
    console.print(Text(f"The mesh is down, after {time.monotonic() - started:.1f} s."))


def _survivors(snapshot: MeshSnapshot | None) -> list[psutil.Process]:
    """Processes of the snapshot that still run; one that only has the pid of one of them is none."""
    return [process for component in (snapshot.components if snapshot else ()) if (process := found(component))]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()  # psutil makes sure that it is still the same one
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5.0)
