"""The state folder of a mesh: who owns it, and where things lie in it.

STATE/
├── lock          held by the supervisor as long as it lives; its pid is inside
├── mesh.json     the snapshot; only while a mesh runs
├── envoy.yaml    what Envoy was started with
├── etcd/         etcd's data
├── logs/         NAME.log and, older, NAME.log.1
└── traces/       SERVICE-INSTANCE.jsonl
"""

import fcntl
import os
from pathlib import Path

import msgspec

from services.console.mesh.snapshot import MeshSnapshot, decode, encode


class MeshRuns(Exception):
    """Another supervisor owns the folder."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"a mesh runs already in {path}" + (f" (supervisor {pid})" if pid else ""))
        self.pid = pid


class StateFolder:
    """The paths, and the snapshot file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file = path / "lock"
        self.mesh_file = path / "mesh.json"
        self.envoy_file = path / "envoy.yaml"
        self.etcd_dir = path / "etcd"
        self.logs_dir = path / "logs"
        self.traces_dir = path / "traces"

    def log(self, name: str) -> Path:
        """The log of a component."""
        return self.logs_dir / f"{name}.log"

    def make(self) -> None:
        """Makes the folders, for their owner alone: the snapshot may hold a key."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.etcd_dir, self.logs_dir, self.traces_dir):
            folder.mkdir(exist_ok=True, mode=0o700)

    def write(self, snapshot: MeshSnapshot) -> None:
        """Replaces the snapshot in one step: a reader sees the old or the new one, whole."""
        draft = self.mesh_file.with_suffix(".json.new")
        draft.write_bytes(encode(snapshot) + b"\n")
        draft.chmod(0o600)
        draft.replace(self.mesh_file)

    def read(self) -> MeshSnapshot | None:
        """The snapshot; None when there is none that this version can read."""
        try:
            return decode(self.mesh_file.read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def owner(self) -> int | None:
        """The pid of the supervisor that owns the folder now; None when nobody does."""
        try:
            Lock(self.lock_file).acquire().release()
        except MeshRuns as running:
            return running.pid
        except FileNotFoundError:
            return None
        return None


class Lock:
    """A lock that the kernel gives back when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> "Lock":
        """Takes it without waiting. Raises MeshRuns, and FileNotFoundError when there is no folder."""
        # Not inherited by children (PEP 446), so it never outlives the holder in one of them.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(file, 32).decode(errors="replace").strip()
            os.close(file)
            raise MeshRuns(self._path.parent, int(text) if text.isdigit() else None) from None
        self._file = file
        return self

    def sign(self) -> None:
        """Writes this process's pid into it, for people and for `headrace down`."""
        assert self._file is not None
        os.truncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Gives it back. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
