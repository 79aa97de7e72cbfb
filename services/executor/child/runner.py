"""A loaded model in a child process, seen from the event loop: passes works to it, tells its steps."""

import asyncio
from typing import Literal, cast

import structlog

from libs.catalogue import ModelSpec
from libs.errors import BY_REASON, HeadraceError, Overloaded, RequestInvalid, Violation
from libs.lane.draft import Draft
from libs.lane.work import FinishReason, Outcome, Work
from services.executor.child.process import ChildProcess
from services.executor.child.wire import (
    AdapterDone,
    Broken,
    Cancel,
    Check,
    CheckDone,
    Ended,
    LoadAdapter,
    Ready,
    Start,
    Stepped,
    UnloadAdapter,
    decode_down,
    encode,
)
from services.executor.engine import (
    BlockEvent,
    Capabilities,
    Capacity,
    Listener,
    LoadFailed,
    RunnerStats,
    SelfCheckFailed,
    Step,
)

log = structlog.get_logger()

FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}

ANSWER_S = 120.0
"""How long a child may take over an adapter or a self-check."""


class ChildRunner:
    """See services.executor.engine.Runner.

    Holds at most `most_works` works, running and waiting; a further one ends at once with Overloaded. An engine
    that has to look at works first overrides `_begin` and `_stop`.
    """

    def __init__(self, child: ChildProcess, ready: Ready, listener: Listener) -> None:
        self.closed = False
        self.pid = child.pid
        """The child's, for operators and tests."""
        self.most_works = 64 + 16 * ready.capacity.slots
        self._ready = ready
        self._child = child
        self._listener = listener
        self._works: dict[int, int] = {}  # work → tokens resumed
        self._refused: list[tuple[int, Outcome]] = []
        self._adapters: dict[str, asyncio.Future[str]] = {}
        self._checks: list[asyncio.Future[str]] = []
        self._stats = RunnerStats()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._read(), name=f"engine {child.pid}")

    @property
    def capacity(self) -> Capacity:
        return self._ready.capacity

    @property
    def capabilities(self) -> Capabilities:
        return self._ready.capabilities

    def submit(self, work_id: int, work: Work) -> None:
        if self.closed:
            raise RuntimeError("the runner is closed")
        if work_id in self._works:
            raise ValueError(f"work {work_id} runs already")
        self._works[work_id] = len(work.resumed)
        if len(self._works) > self.most_works:
            self._refuse(work_id, Overloaded(f"the engine holds {self.most_works} works", retry_after_s=1.0))
        else:
            self._begin(work_id, work)

    def cancel(self, work_id: int) -> None:
        if not self.closed and work_id in self._works:
            self._stop(work_id)

    async def load_adapter(self, adapter: ModelSpec) -> None:
        if fault := await self._ask_adapter(adapter.adapter, LoadAdapter(adapter.adapter, adapter.source)):
            raise LoadFailed(fault)

    async def unload_adapter(self, adapter: str) -> None:
        if fault := await self._ask_adapter(adapter, UnloadAdapter(adapter)):
            log.warning("an adapter was not unloaded", adapter=adapter, reason=fault)

    async def self_check(self) -> None:
        if self.closed:
            raise SelfCheckFailed("the engine's process has ended")
        answer: asyncio.Future[str] = self._loop.create_future()
        self._checks.append(answer)
        self._child.send(encode(Check()))
        try:
            async with asyncio.timeout(ANSWER_S):
                fault = await answer
        except TimeoutError:
            fault = f"no answer within {ANSWER_S:.0f} s"
        if fault:
            raise SelfCheckFailed(fault)

    async def close(self) -> None:
        self.closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail_questions("the runner was closed")
        await self._child.close()

    def _begin(self, work_id: int, work: Work) -> None:
        """Begins a work that there is room for."""
        self._child.send(encode(Start(work_id, work)))

    def _stop(self, work_id: int) -> None:
        """Stops a work that is known."""
        self._child.send(encode(Cancel(work_id)))

    async def _ended(self) -> None:
        """The child has gone; for what else an engine holds."""

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

    async def _ask_adapter(self, adapter: str, question: LoadAdapter | UnloadAdapter) -> str:
        """Asks, one question per adapter at a time; returns what is wrong."""
        while (earlier := self._adapters.get(adapter)) is not None:
            await asyncio.wait([earlier])
        if self.closed:
            return "the engine's process has ended"
        answer: asyncio.Future[str] = self._loop.create_future()
        self._adapters[adapter] = answer
        self._child.send(encode(question))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            return f"no answer within {ANSWER_S:.0f} s"
        finally:
            self._adapters.pop(adapter, None)
            answer.cancel()  # whoever waits behind it goes on

    async def _read(self) -> None:
        reason = ""
        try:
            while (data := await self._child.receive()) is not None:
                message = decode_down(data)
                if isinstance(message, Stepped):
                    self._listener.on_step(self._step(message))
                elif isinstance(message, AdapterDone):
                    if (asked := self._adapters.get(message.adapter)) is not None and not asked.done():
                        asked.set_result(message.fault)
                elif isinstance(message, CheckDone):
                    self._answer_check(message.fault)
                elif isinstance(message, Broken):
                    reason = message.reason
        except Exception as error:  # a bug; the executor must see the runner die, not stall
            log.exception("the engine's runner failed")
            reason = f"{type(error).__name__} in its runner"
        self.closed = True
        status = await self._child.close(kill=True)
        await self._ended()
        self._works.clear()
        reason = reason or f"its process ended with status {status}"
        self._fail_questions(reason)
        log.error("engine process ended", pid=self.pid, reason=reason)
        self._listener.on_broken(reason)

    def _answer_check(self, fault: str) -> None:
        if self._checks and not (answer := self._checks.pop(0)).done():
            answer.set_result(fault)

    def _fail_questions(self, reason: str) -> None:
        for answer in (*self._adapters.values(), *self._checks):
            if not answer.done():
                answer.set_result(reason)

    def _step(self, message: Stepped) -> Step:
        self._stats = RunnerStats(*message.stats)
        for ended in message.ended:
            self._works.pop(ended.work_id, None)
        return Step(
            frame=Draft(message.work_ids, message.offsets, message.counts, message.token_ids, message.log_probs),
            started=message.started,
            outcomes=[(ended.work_id, _outcome(ended)) for ended in message.ended],
            events=[
                BlockEvent(cast(Literal["stored", "removed", "cleared"], kind), hashes)
                for kind, hashes in message.events
            ],
            stats=self._stats,
            swaps=message.swaps,
        )


def _outcome(ended: Ended) -> Outcome:
    finish = FINISHES.get(ended.how)
    error = None
    if finish is None:
        # An engine that refuses a request need not say which field it means.
        whole = [("request", ended.message)] if ended.how == RequestInvalid.reason else []
        violations = [Violation(*violation) for violation in ended.violations or whole]
        error = BY_REASON[ended.how](ended.message, metadata={"stage": "executor"}, violations=violations)
    return Outcome(finish, error, ended.output_tokens, ended.cached_tokens)
