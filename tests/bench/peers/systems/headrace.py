"""Headrace itself: the whole mesh without Envoy, with two simulated executors, through all its doors.

All that a peer's frontend does is charged: admission, router, batcher and KV-cache manager. Executors count as
engines; etcd, placement and supervisor are not on a request's way and are told apart ("rest"). The tokenizer is the
default model's, which Dynamo has here, too.
"""

import json
from pathlib import Path

from headrace.inference.v1 import inference_pb2 as pb
from tests.bench.peers.native import program
from tests.bench.peers.phases import PHASES, Phase, prompt
from tests.bench.peers.processes import Cores, family, move, on_core
from tests.bench.peers.systems.http_engines import DEATH_STEP_US
from tests.bench.peers.systems.system import System
from tests.system.mesh import Mesh

SERVING = ("admission", "router", "batcher", "kvcache")
FORMS = {
    "generate": pb.OUTPUT_FORM_TEXT, "session": pb.OUTPUT_FORM_TEXT,
    "generate_ids": pb.OUTPUT_FORM_TOKEN_IDS, "session_ids": pb.OUTPUT_FORM_TOKEN_IDS,
}  # fmt: skip
MODEL = {
    "source": "simulated:", "engines": ["simulated"], "memory_bytes": 1_000_000, "context_tokens": 8192,
    "blocks": 16384, "block_tokens": 32, "slots": 512, "step_tokens": 8192, "capabilities": ["chat", "log_probs"],
}  # fmt: skip


class Headrace(System):
    """Without tracing, as the peers come."""

    note = "Headrace, whole mesh, no tracing"
    doors = tuple(FORMS)
    charged: tuple[str, ...] = SERVING
    trace_ratio = 0.0
    monoliths = 0

    def __init__(self, folder: Path, cores: Cores) -> None:
        super().__init__(folder, cores)
        self.mesh: Mesh | None = None

    def start(self) -> None:
        """One model for each pace."""
        models = self.folder / "policy" / "models"
        models.mkdir(parents=True, exist_ok=True)
        for step_us in {DEATH_STEP_US, *(phase.step_us for phase in PHASES.values())}:
            model = {**MODEL, "name": f"steps-{step_us}", "simulation": {"step_base_us": step_us, "seed": 7}}
            (models / f"steps-{step_us}.yaml").write_text(json.dumps(model))  # JSON is YAML
        env = {"HEADRACE_TRACE_RATIO": str(self.trace_ratio)}
        mesh = Mesh(
            engine="simulated", executors=2, monoliths=self.monoliths, envoy=False, extra_policy=models.parent, env=env
        )
        with on_core(self.cores.system):
            self.mesh = mesh.__enter__()
        for name, pids in self.groups().items():
            if name not in self.charged:
                move(pids, self.cores.load)

    def stop(self) -> None:
        """`headrace down`."""
        if self.mesh is not None:
            self.mesh.__exit__(None, None, None)
        self.mesh = None

    def groups(self) -> dict[str, list[int]]:
        """By service."""
        snapshot = self._mesh.snapshot()
        found: dict[str, list[int]] = {name: [] for name in (*self.charged, "engine", "rest")}
        known = set()
        for component in snapshot.components:
            name = "engine" if component.service == "executor" else component.service
            if component.pid is not None:
                known.add(component.pid)
                found[name if name in found else "rest"] += family(component.pid)
        known |= {pid for pids in found.values() for pid in pids}
        found["rest"] += [pid for pid in family(snapshot.supervisor) if pid not in known]
        return found

    def load(self, door: str, phase: Phase) -> list[str]:
        """The generator of gRPC."""
        path = self.folder / f"request-{door}-{phase.step_us}.bin"
        path.write_bytes(self.request(door, phase.step_us).SerializeToString())
        session = door.startswith("session")
        method = "Session" if session else "Generate"
        return [
            str(program("grpc_load")), "--port", self._mesh.target.rpartition(":")[2], "--body", str(path),
            "--path", f"/headrace.inference.v1.InferenceService/{method}", "--session", str(int(session)),
            "--key", self._mesh.key,
        ]  # fmt: skip

    def request(self, door: str, step_us: int) -> pb.GenerateRequest:
        """Without `sampling`, which the generator adds."""
        system, user = prompt()
        messages = [pb.Message(role=pb.ROLE_SYSTEM, content=system), pb.Message(role=pb.ROLE_USER, content=user)]
        return pb.GenerateRequest(model=f"steps-{step_us}", chat=pb.Chat(messages=messages), output_form=FORMS[door])

    def engine_pids(self) -> list[list[int]]:
        """Of the executors."""
        return [family(self._mesh.pid(f"executor-{number}")) for number in (1, 2)]

    def kill_engine(self, index: int) -> None:
        """An executor; the supervisor starts it again."""
        self._mesh.kill(f"executor-{index + 1}")

    @property
    def target(self) -> tuple[str, str]:
        """host:port and key."""
        return self._mesh.target, self._mesh.key

    @property
    def _mesh(self) -> Mesh:
        assert self.mesh is not None, "not started"
        return self.mesh


class HeadraceTraced(Headrace):
    """As it comes: every request is traced."""

    note = "Headrace, whole mesh, every request traced"
    trace_ratio = 1.0


class HeadraceMonolith(Headrace):
    """Its four services in one process, as the peers' frontends are one."""

    note = "Headrace, its services in one process, no tracing"
    charged = ("monolith",)
    monoliths = 1
