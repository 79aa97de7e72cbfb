"""A model in TensorRT-LLM, seen from the event loop; see services.executor.engine.Runner."""

from libs.errors import RequestInvalid
from libs.lane.work import FinishReason, Outcome, Work
from services.executor.child.process import ChildProcess
from services.executor.child.runner import ChildRunner
from services.executor.child.wire import Ready
from services.executor.engine import Listener
from services.executor.fit import faults


class TrtLlmRunner(ChildRunner):
    """Lets no work through that is wrong on its face. Token ids that its vocabulary lacks the engine refuses itself."""

    def __init__(self, child: ChildProcess, ready: Ready, listener: Listener, context_tokens: int) -> None:
        super().__init__(child, ready, listener)
        self._context_tokens = context_tokens

    def _begin(self, work_id: int, work: Work) -> None:
        if found := faults(work, self._context_tokens):
            self._refuse(work_id, RequestInvalid.of(found))
        elif 0 < self._context_tokens <= len(work.prompt) + len(work.resumed):
            self._end_here(work_id, Outcome(FinishReason.LENGTH, output_tokens=len(work.resumed)))
        else:
            super()._begin(work_id, work)
