"""How the cost of the mesh goes with its size: executors, requests in flight, tenants, instances.

    python -m tests.bench.scale [--axes a,b] [--most N] [--rounds 3] [--seconds 6] [--out FILE.json] [--plot FILE.png]

Admission, router, batcher and KV-cache manager run on one core; simulated executors (several per process), etcd and a
load generator in C on another. Every other round goes from the largest mesh to the smallest. Results are written
after every run: an interrupted call keeps what it has. Runs that others disturb are told, and left out where a quiet
one is there. `python -m tests.bench.scale.report FILE.json` reads the file again.
"""

import argparse
import json
import os
import platform
import signal
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil

from tests.bench.command import end, say, some_of
from tests.bench.peers.native import program
from tests.bench.peers.processes import Cores
from tests.bench.scale.measure import Run, idle, measure
from tests.bench.scale.plot import picture
from tests.bench.scale.points import AXES, STEP_S, Point, plan
from tests.bench.scale.report import SERVING, cost_us, curve, markdown
from tests.bench.scale.stand import Stand


class Scale:
    """All rounds, and their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._cores = Cores.of_this_machine()
        cores = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
        machine = f"{cores}, Linux {platform.release()}, Python {platform.python_version()}"
        self.results: dict[str, Any] = {"machine": machine, "runs": [], "idle": []}

    def run(self) -> None:
        """Round by round."""
        for number in range(self._options.rounds):
            points = plan(self._options.axes, self._options.most, backwards=number % 2 == 1)
            for instances, of_stand in groupby(points, lambda point: point.instances):
                self._stand(number, instances, [*of_stand])

    def _stand(self, number: int, instances: int, points: Sequence[Point]) -> None:
        with Stand(self._cores, instances) as stand:
            for executors, loads in groupby(points, lambda point: point.executors):
                stand.executors(executors)
                self._keep("idle", asdict(idle(stand, executors, number)))
                for point in loads:
                    run = measure(stand, point, STEP_S[point.model], self._options.seconds, number)
                    self._keep("runs", asdict(run))
                    say(_told(run))

    def _keep(self, kind: str, one: dict[str, Any]) -> None:
        rounded = json.loads(json.dumps(one), parse_float=lambda text: round(float(text), 5))
        self.results[kind].append(rounded)
        if self._options.out:
            self._options.out.write_text(json.dumps(self.results, indent=1) + "\n")


def _told(run: Run) -> str:
    per, cores = AXES[run.axis].per, run.cores
    mesh = sum(cores[name] for name in SERVING)
    cost = f"{cost_us(asdict(run), SERVING, per):8.1f} µs/{per[:-1]}" if run.requests_per_s else "no answer"
    return (
        f"round {run.round + 1}: {run.axis:9} {run.value:5,}: {cost} "
        f"{run.tokens_per_s:8,.0f} tokens/s {run.requests_per_s:6,.0f} requests/s, cores: mesh {mesh:.2f}, "
        f"engines {cores['engine']:.2f}, load {run.client_cores:.2f}, others {run.foreign:.2f}; {run.failed} failed"
    )


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", type=some_of(AXES), default=[*AXES], help=f"of {', '.join(AXES)}")
    parser.add_argument("--most", type=int, default=4096, help="leaves out points with a larger value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each window")
    parser.add_argument("--out", type=Path, help="every run, as JSON; written as it goes")
    parser.add_argument("--plot", type=Path, help="a picture of the medians")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, end)
    os.environ.pop("PYTHONWARNINGS", None)
    chosen = options()
    program("grpc_load")
    scale = Scale(chosen)
    scale.run()
    print(markdown(scale.results))
    if chosen.plot:
        picture({axis.title: curve(scale.results, axis) for axis in AXES.values()}).savefig(chosen.plot)


if __name__ == "__main__":
    main()
