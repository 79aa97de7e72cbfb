"""A loaded model, seen from the event loop: checks works, passes them to its child, tells its steps."""

import asyncio
from collections.abc import Callable
from typing import Literal, cast

import structlog

from libs.errors import BY_REASON, Cancelled, HeadraceError, Overloaded, RequestInvalid, Violation
from libs.lane.work import FinishReason, Frame, Outcome, Work
from services.executor.engine import BlockEvent, Capacity, Listener, RunnerStats, Step
from services.executor.openvino.check import Limits, to_submit
from services.executor.openvino.grammar import GrammarGate
from services.executor.openvino.process import ChildProcess
from services.executor.openvino.wire import Broken, Cancel, Ended, Stepped, Submit, decode_down, encode

log = structlog.get_logger()

FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class OpenVinoRunner:
    """See services.executor.engine.Runner.

    Holds at most `most_works` works, running and waiting; a further one ends at once with Overloaded.
    """

    def __init__(
        self, child: ChildProcess, gate: GrammarGate, capacity: Capacity, limits: Limits, listener: Listener
    ) -> None:
        self.closed = False
        self.pid = child.pid
        """The child's, for operators and tests."""
        self.most_works = 64 + 16 * capacity.slots
        self._capacity = capacity
        self._child = child
        self._gate = gate
        self._limits = limits
        self._listener = listener
        self._works: dict[int, int] = {}  # work → tokens resumed
        self._in_gate: set[int] = set()
        self._refused: list[tuple[int, Outcome]] = []
        self._stats = RunnerStats()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._read(), name=f"engine {child.pid}")

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def submit(self, work_id: int, work: Work) -> None:
        if self.closed:
            raise RuntimeError("the runner is closed")
        if work_id in self._works:
            raise ValueError(f"work {work_id} runs already")
        resumed = self._works[work_id] = len(work.resumed)
        if len(self._works) > self.most_works:
            self._refuse(work_id, Overloaded(f"the engine holds {self.most_works} works", retry_after_s=1.0))
            return
        try:
            submit = to_submit(work_id, work, self._limits)
        except RequestInvalid as error:
            self._refuse(work_id, error)
            return
        if resumed >= submit.max_tokens:
            self._end_here(work_id, Outcome(finish=FinishReason.LENGTH, output_tokens=resumed))
        elif work.grammar is None or (fault := self._gate.verdict(work.grammar)) == "":
            self._child.send(encode(submit))
        elif fault is not None:
            self._refuse(work_id, _grammar_invalid(fault))
        else:
            self._in_gate.add(work_id)
            self._gate.ask(work.grammar, self._after_gate(submit))

    def cancel(self, work_id: int) -> None:
        if self.closed or work_id not in self._works:
            return
        if work_id in self._in_gate:
            self._in_gate.discard(work_id)
            self._refuse(work_id, Cancelled("cancelled"))
        else:
            self._child.send(encode(Cancel(work_id)))

    async def close(self) -> None:
        self.closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._gate.close()
        await self._child.close()

    def _after_gate(self, submit: Submit) -> Callable[[str], None]:
        def go_on(fault: str) -> None:
            if self.closed or submit.work_id not in self._in_gate:
                return  # cancelled meanwhile
            self._in_gate.discard(submit.work_id)
            if fault:
                self._refuse(submit.work_id, _grammar_invalid(fault))
            else:
                self._child.send(encode(submit))

        return go_on

    def _refuse(self, work_id: int, error: HeadraceError) -> None:
        self._end_here(work_id, Outcome(error=error, output_tokens=self._works[work_id]))

    def _end_here(self, work_id: int, outcome: Outcome) -> None:
        """Ends a work that the child does not know; its outcome comes with the loop's next turn."""
        del self._works[work_id]
        self._refused.append((work_id, outcome))
        if len(self._refused) == 1:
            self._loop.call_soon(self._tell_refused)

    def _tell_refused(self) -> None:
        refused, self._refused = self._refused, []
        if not self.closed:
            self._listener.on_step(Step(outcomes=refused, stats=self._stats))

    async def _read(self) -> None:
        reason = ""
        try:
            while (data := await self._child.receive()) is not None:
                message = decode_down(data)
                if isinstance(message, Stepped):
                    self._listener.on_step(self._step(message))
                elif isinstance(message, Broken):
                    reason = message.reason
        except Exception as error:  # a bug; the executor must see the runner die, not stall
            log.exception("the engine's runner failed")
            reason = f"{type(error).__name__} in its runner"
        self.closed = True
        status = await self._child.close(kill=True)
        await self._gate.close()
        self._works.clear()
        reason = reason or f"its process ended with status {status}"
        log.error("engine process ended", pid=self.pid, reason=reason)
        self._listener.on_broken(reason)

    def _step(self, message: Stepped) -> Step:
        self._stats = RunnerStats(*message.stats)
        for ended in message.ended:
            self._works.pop(ended.work_id, None)
        return Step(
            frame=Frame(message.work_ids, message.offsets, message.counts, message.token_ids, message.log_probs),
            started=message.started,
            outcomes=[(ended.work_id, _outcome(ended)) for ended in message.ended],
            events=[
                BlockEvent(cast(Literal["stored", "removed", "cleared"], kind), hashes)
                for kind, hashes in message.events
            ],
            stats=self._stats,
        )


def _outcome(ended: Ended) -> Outcome:
    finish = FINISHES.get(ended.how)
    error = None if finish else BY_REASON[ended.how](ended.message, metadata={"stage": "executor"})
    return Outcome(finish, error, ended.output_tokens, ended.cached_tokens)


def _grammar_invalid(fault: str) -> RequestInvalid:
    return RequestInvalid.of([Violation("grammar", fault)])
