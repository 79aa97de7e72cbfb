"""The placements of a mesh as WatchPlacements tells them: a copy that is kept up to date. Pure."""

from dataclasses import dataclass, field, replace

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2


@dataclass(slots=True)
class Placements:
    """Everything that was told so far."""

    copies: dict[tuple[str, str], pb.Copy] = field(default_factory=dict)
    """By executor and pool."""
    unplaced: dict[str, registry_pb2.Unplaced] = field(default_factory=dict)
    executors: dict[str, pb.ExecutorMemory] = field(default_factory=dict)
    models: dict[str, pb.ModelStatus] = field(default_factory=dict)
    """Without their copies."""
    stale_since: float = 0.0
    """Since when the mesh is out of touch with etcd, Unix seconds; 0: it is in touch."""
    lost: str = ""
    """Why the mesh does not answer us; "" while it does."""
    known: bool = False
    """Whether the first snapshot is in."""

    def take(self, news: pb.WatchPlacementsResponse) -> None:
        """Takes a message in."""
        if news.snapshot:
            self.copies, self.unplaced, self.executors, self.models = {}, {}, {}, {}
            self.known = True
        self.lost = ""
        self.stale_since = news.stale_since
        for gone in news.gone:
            self.copies.pop((gone.executor, gone.pool), None)
        for name in news.placed:
            self.unplaced.pop(name, None)
        for name in news.executors_gone:
            self.executors.pop(name, None)
        for name in news.models_gone:
            self.models.pop(name, None)
        self.copies |= {(copy.executor, copy.pool): copy for copy in news.copies}
        self.unplaced |= {unplaced.model: unplaced for unplaced in news.unplaced}
        self.executors |= {executor.executor: executor for executor in news.executors}
        self.models |= {model.model: model for model in news.models}

    def kept(self) -> "Placements":
        """A copy that later messages do not change."""
        return replace(
            self,
            copies={**self.copies},
            unplaced={**self.unplaced},
            executors={**self.executors},
            models={**self.models},
        )

    def by_executor(self) -> dict[str, list[pb.Copy]]:
        """Copies in order of executor, then pool; executors without a copy, and absent ones that have some."""
        found: dict[str, list[pb.Copy]] = {name: [] for name in sorted({*self.executors, *(e for e, _ in self.copies)})}
        for (executor, _), copy in sorted(self.copies.items()):
            found[executor].append(copy)
        return found
