"""The edge of fastapi_edge.py, which has its engine in itself."""

import urllib.request
from pathlib import Path

from tests.bench.peers.environments import python_of
from tests.bench.peers.phases import Phase
from tests.bench.peers.processes import Process
from tests.bench.peers.systems.system import HOST, HttpSystem


class FastApi(HttpSystem):
    """One process."""

    note = "FastAPI 0.165 with uvicorn and uvloop, engine in the same process: no hop behind it"
    mortal = False

    def start(self) -> None:
        """Two seconds."""
        script = Path(__file__).parents[1] / "fastapi_edge.py"
        command = [str(python_of("fastapi")), str(script), str(self.port)]
        self.system = [Process(self.folder, "system", command, self.cores.system)]
        self.wait_ready()

    def pace(self, phase: Phase) -> None:
        """Tells the edge."""
        urllib.request.urlopen(f"http://{HOST}:{self.port}/control?step_us={phase.step_us}", timeout=5).read()
