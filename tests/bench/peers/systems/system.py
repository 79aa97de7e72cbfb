"""What every system under comparison has: processes that are charged, engines that are not, doors for the load."""

import json
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.bench.peers.native import program
from tests.bench.peers.phases import Phase, prompt
from tests.bench.peers.processes import Cores, Process
from tests.system.etcd import free_ports

HOST = "127.0.0.1"
READY_S = 90.0


class System(ABC):
    """One system, from `start` to `stop`.

    `stop` works after a `start` that failed half-way. Every system has two engines behind it, except where `note` says
    otherwise.
    """

    note: str
    doors: Sequence[str] = ("http",)
    charged: Sequence[str] = ("system",)
    """Which groups of processes count."""
    mortal = True
    """Whether an engine can die alone."""
    delayed = False
    """Whether it writes without TCP_NODELAY, so that its answers wait for the client's delayed acknowledgments."""
    only_death = False
    """Whether nothing else is measured."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self.folder = folder
        self.cores = cores

    @abstractmethod
    def start(self) -> None:
        """Until requests are answered."""

    @abstractmethod
    def stop(self) -> None:
        """Ends every process."""

    @abstractmethod
    def groups(self) -> dict[str, list[int]]:
        """All its processes, by what they are."""

    @abstractmethod
    def load(self, door: str, phase: Phase) -> list[str]:
        """The load generator and its options, but for those that all have."""

    def pace(self, phase: Phase) -> None:
        """Sets the time of the engines' steps. Does nothing where the request says it."""
        return

    def prepare_death(self) -> None:
        """Steps of about 20 ms for 16 requests per engine."""
        return

    def check(self) -> None:
        """Raises RuntimeError when a process has ended by itself."""
        return

    @abstractmethod
    def engine_pids(self) -> list[list[int]]:
        """The processes of each engine."""

    @abstractmethod
    def kill_engine(self, index: int) -> None:
        """kill -9 to one of them."""


class HttpSystem(System):
    """With OpenAI's API for chat completions."""

    model = "bench"
    extra: ClassVar[dict[str, object]] = {}
    """More fields of the request."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        super().__init__(folder, cores)
        self.port, *self.more_ports = free_ports(4)
        self.system: list[Process] = []
        self.engines: list[Process] = []

    def groups(self) -> dict[str, list[int]]:
        """The system and its engines."""
        return {
            "system": [pid for each in self.system for pid in each.pids],
            "engine": [pid for each in self.engines for pid in each.pids],
        }

    def load(self, door: str, phase: Phase) -> list[str]:
        """The generator of server-sent events."""
        path = self.folder / "request.json"
        path.write_text(json.dumps(self.request(), separators=(",", ":")).replace('"TTTT"', "TTTT"))
        quick = str(int(phase.quick_ack))
        return [str(program("sse_load")), "--port", str(self.port), "--body", str(path), "--quick-ack", quick]

    def request(self, tokens: int | str = "TTTT") -> dict[str, object]:
        """The body of a request."""
        system, user = prompt()
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        head = {"model": self.model, "messages": messages, "stream": True, "max_tokens": tokens, "temperature": 0.7}
        return {**head, **self.extra}

    def wait_ready(self) -> None:
        """Until a request is answered whole. Raises RuntimeError after READY_S, or when a process ends."""
        end, error = time.monotonic() + READY_S, ""
        body = json.dumps(self.request(4)).encode()
        headers = {"content-type": "application/json", "authorization": "Bearer bench"}
        while time.monotonic() < end:
            self.check()
            asked = urllib.request.Request(f"http://{HOST}:{self.port}/v1/chat/completions", body, headers)
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    if b"[DONE]" in (said := answer.read()):
                        return
                    error = said.decode(errors="replace")[:300]
            except (urllib.error.URLError, OSError) as raised:
                error = str(raised)
            time.sleep(0.3)
        raise RuntimeError(f"{type(self).__name__} is not ready: {error}")

    def check(self) -> None:
        """Of all its processes."""
        for each in [*self.system, *self.engines]:
            each.check()

    def stop(self) -> None:
        """Fronts first."""
        for each in [*self.system, *self.engines]:
            each.stop()
        self.system, self.engines = [], []

    def engine_pids(self) -> list[list[int]]:
        """One process each, as a rule."""
        return [each.pids for each in self.engines]

    def kill_engine(self, index: int) -> None:
        """With its children. Nobody starts it again."""
        self.engines[index].kill()
