"""A loaded model, seen from the event loop: checks works, and passes them to its child."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from libs.errors import RequestInvalid
from libs.lane.work import Work
from services.executor.child.process import ChildProcess
from services.executor.child.runner import ChildRunner
from services.executor.child.wire import Ready
from services.executor.engine import Listener, LoadFailed
from services.executor.fit import faults

if TYPE_CHECKING:
    from libs.catalogue import ModelSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """What one loaded model can take."""

    context_tokens: int
    """Prompt and answer together."""
    vocabulary: int
    """Token ids are below this."""


class VllmRunner(ChildRunner):
    """See services.executor.engine.Runner."""

    def __init__(self, child: ChildProcess, ready: Ready, limits: Limits, listener: Listener) -> None:
        self._limits = limits
        super().__init__(child, ready, listener)

    async def load_adapter(self, adapter: "ModelSpec") -> None:
        """Besides: an adapter that shares its base's prefixes is refused, for vLLM keeps them apart, and the
        index would promise hits that never come."""
        if adapter.shares_prefix:
            raise LoadFailed("vLLM keeps the prefixes of an adapter apart: take shares_prefix out of its entry")
        await super().load_adapter(adapter)

    def _begin(self, work_id: int, work: Work) -> None:
        if found := faults(work, self._limits.context_tokens, self._limits.vocabulary):
            self._refuse(work_id, RequestInvalid.of(found))
        else:
            super()._begin(work_id, work)
