"""One run of one program: started on its lifeline, with its output in a log file of bounded size."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.console.mesh import lifeline

LOG_LIMIT_BYTES = 16 * 1024 * 1024
"""What a log may grow to before it becomes NAME.log.1; so one component keeps at most twice this."""
KILL_WAIT_S = 5.0
"""The kernel needs some time to take a large process apart."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a program."""

    arguments: Sequence[str]
    """The program's absolute path, and its arguments."""
    environment: Mapping[str, str]
    """Set on top of the supervisor's own environment."""
    log: Path
    """Its stdout and stderr are appended here."""
    folder: Path
    """It runs in this folder."""


class Process:
    """A program that runs, or has ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.started = time.time()
        """Unix seconds."""

    @classmethod
    async def start(cls, command: Command) -> "Process":
        """Starts it. Raises OSError."""
        rotate(command.log, LOG_LIMIT_BYTES // 4)
        with command.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(Path(lifeline.__file__)),
                str(os.getpid()),
                *command.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=command.folder,
                env={**os.environ, **command.environment},
                start_new_session=True,  # Ctrl-C is the supervisor's: it stops them in order
            )
        return cls(process)

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for its end."""
        return await self._process.wait()

    async def stop(self, patience_s: float) -> None:
        """Asks it to end, and kills it after `patience_s` seconds. Idempotent."""
        for asked, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILL_WAIT_S)):
            if self._process.returncode is not None:
                return
            try:
                self._process.send_signal(asked)
                async with asyncio.timeout(wait_s):
                    await self._process.wait()
            except ProcessLookupError:
                return
            except TimeoutError:
                continue

    def kill(self) -> None:
        """Ends it at once. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()

    def ending(self) -> str:
        """How it ended, for a person."""
        code = self._process.returncode
        if code is None:
            return "runs"
        if code >= 0:
            return f"ended with status {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"


def rotate(log: Path, limit_bytes: int) -> bool:
    """Moves a log that has grown past `limit_bytes` to NAME.log.1, also while a program writes to it.

    Copied and cut off, because the program holds the file open: what it writes between the two is lost.
    Its appends then go on at the new end. Returns whether it did.
    """
    try:
        if log.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(log, log.with_name(log.name + ".1"))
    os.truncate(log, 0)
    return True


def tail(log: Path, lines: int, most_bytes: int = 64 * 1024) -> list[str]:
    """The last lines of a log; none when there is no log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:] if lines > 0 else []
