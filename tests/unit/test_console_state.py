"""What a mesh leaves on disk while it runs: snapshot, lock, logs; and its ports."""

import asyncio
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.console.commands.logs import Follower
from services.console.mesh import process, supervise
from services.console.mesh.backoff import Backoff
from services.console.mesh.folder import Lock, MeshRuns, StateFolder
from services.console.mesh.plan import Options
from services.console.mesh.ports import conflicts
from services.console.mesh.snapshot import ComponentSnapshot, MeshSnapshot, ModelSnapshot

SNAPSHOT = MeshSnapshot(
    supervisor=7,
    started=1.0,
    phase="healthy",
    engine="simulated",
    target="127.0.0.1:1",
    etcd="127.0.0.1:2",
    state_dir="/s",
    components=(ComponentSnapshot("etcd", "etcd", "healthy", 2, pid=8, started=1.5),),
    models=(ModelSnapshot("tiny", "ready", "on executor-1"),),
)


def test_a_snapshot_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.make()
    assert folder.read() is None
    folder.write(SNAPSHOT)
    assert folder.read() == SNAPSHOT
    assert SNAPSHOT.component("etcd").pid == 8
    with pytest.raises(KeyError):
        SNAPSHOT.component("router-1")
    assert [path.name for path in folder.path.glob("mesh*")] == ["mesh.json"]
    assert folder.mesh_file.stat().st_mode & 0o777 == 0o600
    folder.mesh_file.write_text('{"half of')
    assert folder.read() is None


def test_options_survive_the_way_to_the_supervisor() -> None:
    options = Options(Path("/s"), Path("/p"), Path("/c"), engine="simulated", executors=3, etcd_port=2379)
    assert supervise.decode(supervise.encode(options)) == options


def test_a_folder_has_one_owner_until_that_one_dies(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert folder.owner() is None
    script = (
        "import sys, pathlib; from services.console.mesh.folder import Lock;"
        "Lock(pathlib.Path(sys.argv[1])).acquire().sign(); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder.lock_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"mine\n"
        assert folder.owner() == owner.pid
        with pytest.raises(MeshRuns, match=rf"a mesh runs already in .* \(supervisor {owner.pid}\)"):
            Lock(folder.lock_file).acquire()
        owner.kill()
    assert folder.owner() is None


def test_taken_ports_are_told_with_both_sides() -> None:
    with socket.socket() as holder, socket.socket() as other:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
        other.close()
        port = holder.getsockname()[1]
        (conflict,) = conflicts("127.0.0.1", {port: "envoy (clients)", free: "nobody"})
    assert (conflict.port, conflict.wanted_by) == (port, "envoy (clients)")
    assert str(conflict).startswith(f"port {port}, wanted by envoy (clients), is held by pid {os.getpid()} (")


def test_backoff_doubles_and_starts_over_after_a_healthy_run() -> None:
    backoff = Backoff()
    assert [round(backoff.delay(0.0), 1) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.delay(29.9) == 5.0
    assert backoff.delay(30.0) == 0.2


def test_a_log_is_moved_aside_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 10)
        assert not process.rotate(log, 40)
        assert process.rotate(log, 39)
        writer.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "a.log.1").read_bytes() == b"old\n" * 10
    assert not process.rotate(tmp_path / "none.log", 0)


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert process.tail(log, 3) == []
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    assert process.tail(log, 2) == ["line 98", "line 99"]
    assert process.tail(log, 0) == []


def test_following_a_log_waits_for_whole_lines_and_survives_its_rotation(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("before\n")
    follower = Follower(log)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"one\ntw")
        assert list(follower.lines()) == ["one"]
        writer.write(b"o\n")
        assert list(follower.lines()) == ["two"]
        process.rotate(log, 0)
        assert list(follower.lines()) == []
        writer.write(b"three\n")
        assert list(follower.lines()) == ["three"]
    log.unlink()
    assert list(follower.lines()) == []


async def test_a_process_dies_with_its_supervisor(tmp_path: Path) -> None:
    """The supervisor is killed: its component, started on a lifeline, is gone with it."""
    script = (
        "import asyncio, pathlib, sys\n"
        "from services.console.mesh.process import Command, Process\n"
        "async def main():\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        "    started = await Process.start(Command(['/bin/sleep', '600'], {}, folder / 'a.log', folder))\n"
        "    print(started.pid, flush=True)\n"
        "    await started.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        component = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.kill()
    try:
        ended, _, _ = select.select([component], [], [], 5)
        assert ended, "it outlives its supervisor"
    finally:
        os.close(component)


async def test_a_process_that_does_not_want_to_end_is_killed(tmp_path: Path) -> None:
    command = process.Command(
        ["/bin/sh", "-c", "trap '' TERM; echo here; while :; do sleep 1; done"], {}, tmp_path / "a.log", tmp_path
    )
    stubborn = await process.Process.start(command)
    while "here" not in "".join(process.tail(tmp_path / "a.log", 1)):
        assert stubborn.returncode is None
        await asyncio.sleep(0.01)
    await stubborn.stop(0.2)
    assert stubborn.ending() == "was ended by SIGKILL"
