"""Which grammars may reach the engine: those that a probe process has compiled before."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import structlog

from libs.lane.work import Grammar
from services.executor.child.process import ChildProcess
from services.executor.child.wire import encode
from services.executor.openvino.wire import Try, decode_verdict

log = structlog.get_logger()

COMPILE_S = 10.0
"""A grammar that compiles for longer is refused: in the engine it would stop everybody for as long."""

START_S = 60.0

REMEMBERED = 256
"""Verdicts kept, least recently used given up first."""

TOO_LONG = f"takes longer than {COMPILE_S:.0f} s to compile"
CRASHES = "crashes the grammar compiler"
UNCHECKED = "cannot be checked at the moment"


class GrammarGate:
    """Gives verdicts on grammars, one at a time, from a probe process that starts with the first question.

    Questions wait in a queue; each belongs to a work, so the runner's bound on works bounds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verdicts: OrderedDict[Grammar, str] = OrderedDict()
        self._questions: asyncio.Queue[Grammar] = asyncio.Queue()
        self._asking: dict[Grammar, list[Callable[[str], None]]] = {}
        self._probe: ChildProcess | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="grammar gate")

    def verdict(self, grammar: Grammar) -> str | None:
        """What is wrong with a grammar, empty for nothing; None when it is not known yet."""
        if (fault := self._verdicts.get(grammar)) is not None:
            self._verdicts.move_to_end(grammar)
        return fault

    def ask(self, grammar: Grammar, answer: Callable[[str], None]) -> None:
        """Finds the verdict out and calls `answer` with it. `answer` must not raise."""
        waiting = self._asking.setdefault(grammar, [])
        waiting.append(answer)
        if len(waiting) == 1:
            self._questions.put_nowait(grammar)

    async def close(self) -> None:
        """Ends the probe. Open questions get no answer."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._probe is not None:
            await self._probe.close(kill=True)

    async def _run(self) -> None:
        while True:
            grammar = await self._questions.get()
            fault = await self._try(grammar)
            if fault != UNCHECKED:
                self._verdicts[grammar] = fault
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
            for answer in self._asking.pop(grammar):
                answer(fault)

    async def _try(self, grammar: Grammar) -> str:
        try:
            probe = self._probe = self._probe or await self._start()
            probe.send(encode(Try(grammar.form, grammar.text)))
            async with asyncio.timeout(COMPILE_S):
                data = await probe.receive()
            if data is not None:
                return decode_verdict(data).fault
            fault = CRASHES
        except TimeoutError:
            fault = TOO_LONG
        except OSError:
            log.exception("the grammar probe does not start")
            fault = UNCHECKED
        if self._probe is not None:
            probe, self._probe = self._probe, None
            await probe.close(kill=True)
        return fault

    async def _start(self) -> ChildProcess:
        """Raises OSError."""
        probe = await ChildProcess.start("services.executor.openvino.probe", str(self._folder))
        try:
            async with asyncio.timeout(START_S):
                if await probe.receive() is not None:  # it says that it is ready
                    return probe
        except TimeoutError:
            pass
        except BaseException:
            await probe.close(kill=True)
            raise
        raise OSError(f"the grammar probe ended with status {await probe.close(kill=True)}")
