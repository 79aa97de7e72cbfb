"""Finding the mesh that a command is about."""

from pathlib import Path

from services.console.mesh.folder import StateFolder
from services.console.mesh.snapshot import MeshSnapshot
from services.console.problem import Problem


def running(state_dir: Path) -> MeshSnapshot:
    """The snapshot of the mesh that runs there. Raises Problem when none does."""
    folder = StateFolder(state_dir)
    snapshot = folder.read()
    if folder.owner() is None or snapshot is None:
        details = [f"its last start failed: {snapshot.failure}"] if snapshot and snapshot.failure else []
        raise Problem(f"no mesh runs in {state_dir}", details, "`headrace up` starts one; `--state-dir` names another")
    return snapshot
