"""The cache of prepared things: folders that are whole or not there.

A folder is written under another name and renamed when it is finished, so whoever finds it may use it, and a
process that is killed half-way leaves only a folder that the next one sweeps away. One lock file per folder
makes other processes wait; the kernel frees a lock with the process that held it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"


def build_once(folder: Path, build: Callable[[Path], None], waiting: Callable[[], None] = lambda: None) -> Path:
    """Returns `folder`, calling `build` with an empty folder to fill if it is not there yet.

    Blocks while another process builds the same; `waiting` is called before it does. What `build` raises
    passes through, and nothing is left.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock"), waiting):
        if folder.is_dir():  # somebody else was faster
            return folder
        for leftover in folder.parent.glob(f"{folder.name}{PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed: we hold its lock
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}{PARTIAL}", dir=folder.parent))
        try:
            partial.chmod(0o755)
            build(partial)
            _sync(partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return folder


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with path.open("w") as file:  # never removed: two processes could else lock two files of one name
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    """Makes sure that content is on the disk before the name is: a crash of the machine leaves no empty
    files behind a valid name."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
