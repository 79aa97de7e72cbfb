"""The supervisor as a process of its own, for `headrace up --detach`: `python -m …supervise OPTIONS`."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from libs.telemetry.logs import setup_logs
from services.console import policy
from services.console.mesh import plan
from services.console.mesh.folder import Lock, StateFolder
from services.console.mesh.plan import Options
from services.console.mesh.snapshot import MeshSnapshot
from services.console.mesh.supervisor import StartFailed, Supervisor


def encode(options: Options) -> str:
    """The options as one argument."""
    return msgspec.json.encode(options, enc_hook=str).decode()  # the hook is for paths


def decode(text: str) -> Options:
    """Reads what `encode` wrote. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(text, type=Options, dec_hook=lambda kind, value: kind(value))


async def supervise(options: Options, folder: StateFolder, show: Callable[[MeshSnapshot], None]) -> None:
    """Runs a mesh in this process until SIGINT or SIGTERM; a second one ends it in haste.

    The folder's lock must be held. Raises StartFailed and PolicyInvalid.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def asked() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked)
    await Supervisor(plan.draw(options), policy.load(options.policy_dir), folder, show).run(stop, hurry)


@contextlib.contextmanager
def logging_to(log: Path) -> Iterator[None]:
    """The supervisor's own log, also where a table has the terminal."""
    with log.open("a", buffering=1, encoding="utf-8") as file:
        with contextlib.redirect_stderr(file):
            setup_logs("supervisor", "supervisor")
        yield


def main() -> int:
    """Takes the lock and supervises."""
    options = decode(sys.argv[1])
    folder = StateFolder(options.state_dir)
    lock = Lock(folder.lock_file).acquire()
    lock.sign()
    try:
        with logging_to(folder.log("supervisor")):
            asyncio.run(supervise(options, folder, lambda _: None))
    except StartFailed:
        return 1  # the reason is in the snapshot
    finally:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
