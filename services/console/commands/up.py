"""`headrace up`."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from rich.console import Console
from rich.text import Text

from services.console import policy
from services.console.hints import hints
from services.console.mesh import parts, plan, ports, supervise
from services.console.mesh.folder import Lock, MeshRuns, StateFolder
from services.console.mesh.plan import HOST, Options, OptionsInvalid, Plan
from services.console.mesh.process import rotate, tail
from services.console.mesh.snapshot import MeshSnapshot
from services.console.mesh.supervisor import StartFailed
from services.console.policy import PolicyInvalid
from services.console.problem import Problem
from services.console.view import View, view

POLL_S = 0.1
EXCERPT_LINES = 15


def up(options: Options, detach: bool, state_option: str, console: Console) -> None:
    """Starts a mesh and stays with it, or with `detach` until it is healthy. Raises Problem."""
    folder = StateFolder(options.state_dir)
    _check(options)
    folder.make()
    lock = _lock(folder)
    try:
        _check_ports(plan.draw(options))
        folder.mesh_file.unlink(missing_ok=True)  # of a mesh that was killed, or did not start
        for log in folder.logs_dir.glob("*.log"):
            rotate(log, 0)  # each mesh starts its logs anew; the one before is in NAME.log.1
        if not detach:
            lock.sign()
            _stay(options, folder, state_option, console)
    finally:
        lock.release()
    if detach:
        _detach(options, folder, state_option, console)


def _check(options: Options) -> None:
    """Everything that can be known before anything is touched."""
    try:
        plan.draw(options)
        policy.load(options.policy_dir)
        parts.etcd()
        if options.envoy:
            parts.envoy()
    except OptionsInvalid as error:
        raise Problem("these options do not make a mesh", str(error).splitlines()) from error
    except PolicyInvalid as error:
        raise Problem(f"the policy in {options.policy_dir} is not valid", error.faults) from error
    except parts.PartMissing as error:
        raise Problem(str(error)) from error


def _lock(folder: StateFolder) -> Lock:
    try:
        return Lock(folder.lock_file).acquire()
    except MeshRuns as running:
        raise Problem(str(running), advice="`headrace status` shows it, `headrace down` stops it") from running


def _check_ports(drawn: Plan) -> None:
    taken = ports.conflicts(HOST, drawn.ports())
    if taken:
        raise Problem(
            "a port is taken" if len(taken) == 1 else f"{len(taken)} ports are taken",
            [str(conflict) for conflict in taken],
            "`--port P` moves all ports of the mesh; the first of them is P",
        )


def _stay(options: Options, folder: StateFolder, state_option: str, console: Console) -> None:
    told = False

    def show(snapshot: MeshSnapshot) -> None:
        nonlocal told
        shown.show(snapshot)
        if snapshot.phase == "healthy" and not told:
            told = True
            shown.say(hints(snapshot, state_option))

    failure: StartFailed | None = None
    with supervise.logging_to(folder.log("supervisor")), view(console, "Ctrl-C stops the mesh") as shown:
        try:
            asyncio.run(supervise.supervise(options, folder, show))
        except StartFailed as failed:
            failure = failed
    if failure is not None:  # told below the table, not within it
        raise _failed(str(failure), failure.component, folder)
    console.print(Text("The mesh is down. Nothing of it runs any more.", style="bold"))


def _detach(options: Options, folder: StateFolder, state_option: str, console: Console) -> None:
    with folder.log("supervisor").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", supervise.__name__, supervise.encode(options)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(parts.ROOT), str(parts.ROOT / "protos")])},
            start_new_session=True,
        )
    with view(console, "Ctrl-C gives up") as shown:
        try:
            snapshot = _follow(supervisor, folder, shown)
        except KeyboardInterrupt:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait()
            raise Problem("given up; nothing of the mesh runs any more") from None
    console.print(hints(snapshot, state_option), soft_wrap=True)


def _follow(supervisor: subprocess.Popen[bytes], folder: StateFolder, shown: View) -> MeshSnapshot:
    while True:
        ended = supervisor.poll() is not None
        snapshot = folder.read()
        if snapshot is not None and snapshot.supervisor == supervisor.pid:
            shown.show(snapshot)
            if snapshot.phase == "healthy":
                return snapshot
            if ended and snapshot.phase == "failed":
                raise _failed(snapshot.failure, snapshot.failed_component, folder)
        if ended:
            raise Problem(
                f"the supervisor ended with status {supervisor.returncode}",
                excerpt=tail(folder.log("supervisor"), EXCERPT_LINES),
            )
        time.sleep(POLL_S)


def _failed(why: str, component: str, folder: StateFolder) -> Problem:
    name = component or "supervisor"
    return Problem(
        "the mesh could not be started",
        [why],
        excerpt=tail(folder.log(name), EXCERPT_LINES),
        advice=f"all of it: {folder.log(name)}",
    )
