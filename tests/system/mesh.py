"""A whole mesh for tests: real processes, started and stopped by the real command.

    with Mesh(engine="simulated", executors=2, envoy=True) as mesh:
        ...  # mesh.target, mesh.key

Each has a state folder and a range of ports of its own, so meshes can run beside each other.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from services.console.mesh import parts
from services.console.mesh.folder import StateFolder
from services.console.mesh.plan import HOST, Options, draw
from services.console.mesh.ports import conflicts
from services.console.mesh.snapshot import MeshSnapshot

BASES = range(10_000, 32_000, 300)
"""Below the ports that the kernel gives to outgoing connections: one of those could take ours while its owner
restarts."""
HEADRACE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from services.console.main import main; main()"
)
"""The command, which hears interrupts: tests that run in the background of a script inherit that they are ignored."""
UP_TIMEOUT_S = 110.0
TRIES = 3


class Mesh:
    """A mesh that is up within the `with` block.

    Args:
        engine: "simulated" or "openvino".
        executors, batchers, routers, admissions, monoliths: How many processes of each.
        envoy: Whether Envoy is the door.
        env: Environment variables on top of the test's own.
        extra_policy: A folder whose files are laid over deploy/policy.
        up: Whether to start it; if not, the test does, with `command("up", *mesh.arguments)`.
    """

    def __init__(
        self,
        *,
        engine: str = "simulated",
        executors: int = 1,
        batchers: int = 1,
        routers: int = 1,
        admissions: int = 1,
        monoliths: int = 0,
        envoy: bool = True,
        env: Mapping[str, str] | None = None,
        extra_policy: Path | None = None,
        up: bool = True,
    ) -> None:
        self._counts = {
            "executors": executors, "batchers": batchers, "routers": routers, "admissions": admissions,
            "monoliths": monoliths,
        }  # fmt: skip
        self._engine = engine
        self._envoy = envoy
        self._env = {**os.environ, **(env or {})}
        self._up = up
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-"))
        self.state_dir = self._folder / "state"
        shutil.copytree(parts.POLICY_DIR, self._folder / "policy")
        if extra_policy is not None:
            shutil.copytree(extra_policy, self._folder / "policy", dirs_exist_ok=True)
        self.port = free_base(self._options())

    def __enter__(self) -> Self:
        for attempt in range(1, TRIES + 1):
            if not self._up:
                return self
            started = self.command("up", "--detach", *self.arguments, timeout_s=UP_TIMEOUT_S)
            if started.returncode == 0:
                return self
            self.port = free_base(self._options())
            if attempt == TRIES or "taken" not in started.stderr:  # another mesh was quicker
                self._remove()
                raise AssertionError(f"the mesh did not start:\n{started.stdout}{started.stderr}")
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            stopped = self.command("down", timeout_s=90)
            assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        finally:
            self._remove()

    @property
    def target(self) -> str:
        """host:port of the clients' door."""
        return f"{HOST}:{self.port}"

    @property
    def key(self) -> str:
        """The key of an operator."""
        key = self.snapshot().key
        assert key is not None
        return key

    def snapshot(self) -> MeshSnapshot:
        """What the supervisor says."""
        snapshot = StateFolder(self.state_dir).read()
        assert snapshot is not None, "no mesh runs"
        return snapshot

    def pid(self, component: str) -> int:
        """The process of "executor-1", "etcd"… Waits for it to be there."""
        end = time.monotonic() + 10
        while (pid := self.snapshot().component(component).pid) is None:
            assert time.monotonic() < end, f"{component} does not run"
            time.sleep(0.02)
        return pid

    def metrics_port(self, component: str) -> int:
        """Where its metrics are."""
        port = self.snapshot().component(component).metrics_port
        assert port is not None, f"{component} has no metrics of ours"
        return port

    def kill(self, component: str) -> None:
        """kill -9; returns when it is dead."""
        process = psutil.Process(self.pid(component))
        process.send_signal(signal.SIGKILL)
        psutil.wait_procs([process], timeout=5)

    def wait_healthy(self, timeout_s: float = 30.0) -> None:
        """Until every component and model is well, and those that were killed are back."""
        end = time.monotonic() + timeout_s
        while not _well(snapshot := self.snapshot()):
            assert time.monotonic() < end, f"not healthy after {timeout_s:g} s: {snapshot}"
            time.sleep(0.05)

    @property
    def arguments(self) -> list[str]:
        """What `headrace up` needs to know."""
        arguments = ["--engine", self._engine, "--port", str(self.port), "--policy", str(self._folder / "policy")]
        arguments += ["--envoy" if self._envoy else "--no-envoy"]
        for name, count in self._counts.items():
            arguments += [f"--{name}", str(count)]
        return arguments

    def command(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs a subcommand of `headrace` on this mesh."""
        with self.begin(*arguments) as running:
            try:
                out, err = running.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                running.terminate()
                raise
        return subprocess.CompletedProcess(running.args, running.returncode, out, err)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The same, without waiting for its end."""
        words = [sys.executable, "-c", HEADRACE, *arguments]
        if "--state-dir" not in arguments:
            words += ["--state-dir", str(self.state_dir)]
        return subprocess.Popen(
            words, cwd=parts.ROOT, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _options(self) -> Options:
        return Options(
            state_dir=self.state_dir,
            policy_dir=self._folder / "policy",
            cache_dir=self._folder,
            engine=self._engine,
            envoy=self._envoy,
            **self._counts,
        )

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def free_base(options: Options) -> int:
    """A base port whose whole range is free now, for a mesh with these options."""
    bases = list(BASES)
    random.shuffle(bases)
    for base in bases:
        if not conflicts(HOST, draw(replace(options, port=base)).ports()):
            return base
    raise AssertionError("no range of ports is free")


def _well(snapshot: MeshSnapshot) -> bool:
    return snapshot.phase == "healthy" and all(
        component.state == "healthy" and component.pid is not None and _runs(component.pid)
        for component in snapshot.components
    )


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
