"""A model loaded by OpenVINO: works are checked, and new grammars tried, before its child hears of them."""

from collections.abc import Callable

from libs.catalogue import ModelSpec
from libs.errors import Cancelled, RequestInvalid
from libs.lane.work import FinishReason, Grammar, Outcome, Work
from services.executor.child.process import ChildProcess
from services.executor.child.runner import ChildRunner
from services.executor.child.wire import Ready, encode
from services.executor.engine import Listener, LoadFailed
from services.executor.fit import grammar_violation
from services.executor.openvino.check import Limits, to_submit
from services.executor.openvino.grammar import GrammarGate
from services.executor.openvino.wire import LoadLora, Submit


class OpenVinoRunner(ChildRunner):
    """See services.executor.engine.Runner."""

    def __init__(
        self, child: ChildProcess, gate: GrammarGate, ready: Ready, limits: Limits, listener: Listener
    ) -> None:
        super().__init__(child, ready, listener)
        self._gate = gate
        self._limits = limits
        self._in_gate: set[int] = set()

    async def load_adapter(self, adapter: ModelSpec) -> None:
        question = LoadLora(adapter.adapter, adapter.source, adapter.shares_prefix)
        if fault := await self._ask_adapter(adapter.adapter, question):
            raise LoadFailed(f"the adapter {adapter.name} cannot be loaded: {fault}")

    async def close(self) -> None:
        await self._gate.close()
        await super().close()

    async def _ended(self) -> None:
        await self._gate.close()

    def _begin(self, work_id: int, work: Work) -> None:
        try:
            submit = to_submit(work_id, work, self._limits)
        except RequestInvalid as error:
            self._refuse(work_id, error)
            return
        if len(work.resumed) >= submit.max_tokens:
            self._end_here(work_id, Outcome(finish=FinishReason.LENGTH, output_tokens=len(work.resumed)))
        elif work.grammar is None or (fault := self._gate.verdict(work.grammar)) == "":
            self._child.send(encode(submit))
        elif fault is not None:
            self._refuse(work_id, _grammar_invalid(work.grammar, fault))
        else:
            self._in_gate.add(work_id)
            self._gate.ask(work.grammar, self._after_gate(submit, work.grammar))

    def _stop(self, work_id: int) -> None:
        if work_id in self._in_gate:
            self._in_gate.discard(work_id)
            self._refuse(work_id, Cancelled("cancelled"))
        else:
            super()._stop(work_id)

    def _after_gate(self, submit: Submit, grammar: Grammar) -> Callable[[str], None]:
        def go_on(fault: str) -> None:
            if self.closed or submit.work_id not in self._in_gate:
                return  # cancelled meanwhile
            self._in_gate.discard(submit.work_id)
            if fault:
                self._refuse(submit.work_id, _grammar_invalid(grammar, fault))
            else:
                self._child.send(encode(submit))

        return go_on


def _grammar_invalid(grammar: Grammar, fault: str) -> RequestInvalid:
    return RequestInvalid.of([grammar_violation(grammar, fault)])
