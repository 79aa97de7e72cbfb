"""A real tritonserver, as a process that a test can kill and start again."""

import asyncio
import os
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

from libs.registry import TlsFiles
from tests.system.etcd import free_ports
from tests.system.triton.environment import triton_environment
from tests.system.triton.repository import ModelRepository

START_S = 60.0


@dataclass
class TritonServer:
    """tritonserver over a model repository, with explicit loading. Ports stay the same over restarts."""

    repository: ModelRepository
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    """gRPC, HTTP, metrics."""
    tls: TlsFiles | None = None
    """Its certificate is server.crt beside the CA."""
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """host:port of its gRPC service."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def metrics_endpoint(self) -> str:
        """host:port of /metrics."""
        return f"127.0.0.1:{self.ports[2]}"

    async def start(self) -> None:
        """Starts the process and waits until it answers."""
        assert self.process is None
        environment = triton_environment()
        command = [
            str(environment.binary), "--model-repository", str(self.repository.models),
            "--backend-directory", str(environment.backends), "--model-control-mode", "explicit",
            "--grpc-address", "127.0.0.1", "--grpc-port", str(self.ports[0]), "--http-address", "127.0.0.1",
            "--http-port", str(self.ports[1]), "--metrics-address", "127.0.0.1", "--metrics-port", str(self.ports[2]),
            "--metrics-interval-ms", "200", "--allow-gpu-metrics", "false", "--disable-auto-complete-config",
            "--backend-config", f"python,shm-region-prefix-name={self._shared_memory}",
        ]  # fmt: skip
        if self.tls is not None:
            folder = self.tls.ca.parent
            command += ["--grpc-use-ssl", "true", "--grpc-root-cert", str(self.tls.ca)]
            command += [
                "--grpc-server-cert",
                str(folder / "server.crt"),
                "--grpc-server-key",
                str(folder / "server.key"),
            ]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **environment.variables}, start_new_session=True
            )
        async with asyncio.timeout(START_S):
            while not await asyncio.to_thread(self._ready):
                if self.process.poll() is not None:
                    raise AssertionError(f"tritonserver ended:\n{self.log()}")
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the server and to the processes of its models, and waits for the end."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None
            for left in Path("/dev/shm").glob(f"{self._shared_memory}*"):  # it could not clean up
                left.unlink(missing_ok=True)

    def freeze(self) -> None:
        """SIGSTOP to the server itself: connections stay open, nothing answers."""
        assert self.process is not None
        self.process.send_signal(SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(SIGCONT)

    async def counts(self, model: str = "tensorrt_llm") -> dict[str, int]:
        """What a language model says of its works: started, finished, stopped, cancelled, failed, refused."""
        found = {}
        for line in (await asyncio.to_thread(self._get, self.ports[2], "/metrics")).splitlines():
            if line.startswith("test_model_works_total") and f'model="{model}"' in line:
                found[line.split('event="')[1].split('"')[0]] = int(float(line.split()[-1]))
        return found

    @property
    def log_file(self) -> Path:
        """What the server writes."""
        return self.repository.folder / "tritonserver.log"

    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def _shared_memory(self) -> str:
        return f"headrace-{os.getpid()}-{self.ports[0]}-"

    def _ready(self) -> bool:
        try:
            self._get(self.ports[1], "/v2/health/live")
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
