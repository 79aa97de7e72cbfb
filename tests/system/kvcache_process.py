"""A KV-cache manager as a process that a test can kill and start again, at the same address."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import psutil

from tests.system.etcd import free_ports

ROOT = Path(__file__).resolve().parents[2]


class ManagerProcess:
    """One manager; `folder` takes its log and its traces."""

    def __init__(self, folder: Path, etcd_endpoint: str) -> None:
        (port,) = free_ports(1)
        self.endpoint = f"127.0.0.1:{port}"
        self._log = folder / "manager.log"
        self._environment = {
            **os.environ,
            "HEADRACE_INSTANCE": "kvcache-1",
            "HEADRACE_LISTEN": self.endpoint,
            "HEADRACE_ETCD": etcd_endpoint,
            "HEADRACE_STATE_DIR": str(folder),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; its log begins anew."""
        command = [sys.executable, "-m", "services.kvcache.main"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it has written since it was started."""
        return self._log.read_text(errors="replace")

    def first_report(self) -> float:
        """When it took the first report in, Unix seconds."""
        for line in self.log().splitlines():
            if '"executor reports"' in line:
                return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
        raise AssertionError(f"nobody has reported:\n{self.log()}")

    @property
    def memory_bytes(self) -> int:
        """Resident memory."""
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)
