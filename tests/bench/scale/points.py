"""What is measured: axes, each a row of points that differ in one thing. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

TOKENS = 128
"""Of an answer."""
STEP_S = {"paced": 0.1, "flood": 0.0}
"""Of the engines, by the model that is asked for. Slow enough for one core to carry 4,096 answers at once."""
USUAL = 4
"""Executors where they are not what is varied."""
FIRM = 0.1
"""A cost within so much of the first point's is flat."""


@dataclass(frozen=True, slots=True)
class Point:
    """One load on one mesh."""

    axis: str
    value: int
    """What is varied."""
    executors: int = USUAL
    flight: int = 256
    tokens: int = TOKENS
    model: str = "paced"
    tenants: int = 0
    """Generate, each request another tenant's turn; 0: Session, one tenant."""
    instances: int = 1
    """Of admission, router and batcher, each."""

    @property
    def offered(self) -> float:
        """Tokens/s that the engines give; 0 where only the mesh limits them."""
        step_s = STEP_S[self.model]
        return self.flight / step_s if step_s else 0.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A row of points."""

    name: str
    title: str
    points: Sequence[Point]
    per: str = "tokens"
    """What the cost is told by: "tokens" or "requests"."""


def _axes() -> Sequence[Axis]:
    executors, flights = (1, 2, 4, 8, 16, 32, 64), (64, 256, 1024, 4096)
    return (
        Axis(
            "spread", "executors, 1,024 requests in flight in all",
            [Point("spread", n, executors=n, flight=1024) for n in executors],
        ),
        Axis(
            "executors", "executors, 64 requests in flight on each",
            [Point("executors", n, executors=n, flight=64 * n) for n in executors],
        ),
        Axis("flight", "requests in flight, 4 executors", [Point("flight", n, flight=n) for n in flights]),
        Axis(
            "flood", "requests in flight, engines without delay",
            [Point("flood", n, flight=n, model="flood") for n in flights],
        ),
        Axis("length", "tokens per answer", [Point("length", n, tokens=n) for n in (32, 128, 512)]),
        Axis(
            "tenants", "tenants, short answers by Generate",
            [Point("tenants", n, flight=64, tokens=8, model="flood", tenants=n) for n in (1, 10, 100, 1000)],
            per="requests",
        ),
        Axis("instances", "instances of each service", [Point("instances", n, instances=n) for n in (1, 2, 3)]),
    )  # fmt: skip


AXES = {axis.name: axis for axis in _axes()}


def plan(names: Sequence[str], most: int, backwards: bool) -> list[Point]:
    """The points of these axes, so that a mesh is started once for each number of instances, and executors only
    come, or only go.

    Args:
        most: Points with a larger value are left out: a short form.
        backwards: From the largest mesh to the smallest one, so that what drifts with time evens out over two rounds.
    """
    points = [point for name in names for point in AXES[name].points if point.value <= most]
    order = sorted(points, key=lambda point: point.executors, reverse=backwards)
    return sorted(order, key=lambda point: point.instances)
