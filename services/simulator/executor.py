"""An executor as the batcher sees it: a Stage whose lane drives a fast engine. Pure."""

from collections.abc import Mapping, Sequence

from libs.lane.frame import Frame
from libs.lane.stage import Sink
from libs.lane.work import Decision, QueueState, Work
from services.executor.blocks import PagedBlocks
from services.simulator.batch import Batch
from services.simulator.engine import Engine
from services.simulator.loop import Loop
from services.simulator.memory import Report
from services.simulator.record import Record
from services.simulator.step import Told
from services.simulator.values import Arrival, Setup


class Executor:
    """See libs.lane.stage.Stage. Carries one lane.

    Args:
        records: By request id: where engines write what happens to a work.
    """

    def __init__(self, loop: Loop, setup: Setup, name: str, report: Report, records: Mapping[str, Record]) -> None:
        self.name = name
        blocks = PagedBlocks(setup.blocks, setup.block_tokens, setup.step.host_blocks)
        batch = Batch(name, setup.slots, blocks, setup.step_tokens)
        self.engine = Engine(loop, setup.step, batch, self._tell)
        self._loop = loop
        self._wire_s = setup.wire_s
        self._report = report
        self._records = records
        self._sink: Sink | None = None

    def open(self, sink: Sink) -> "EngineLane":
        self._sink = sink
        sink.on_ready()
        return EngineLane(self._loop, self._wire_s, self.engine, self._records)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """It decides nothing."""
        return ()

    async def queues(self) -> Sequence[QueueState]:
        """Those of engines are not shown."""
        return ()

    def _tell(self, told: Told) -> None:
        self._loop.after(self._wire_s, lambda: self._pass(told))

    def _pass(self, told: Told) -> None:
        if told.events:
            self._report.events(told.events)
        if self._sink is None:
            return
        if told.frame:
            self._sink.on_frame(Frame.of(told.frame))
        for work_id, outcome in told.outcomes:
            self._sink.on_outcome(work_id, outcome)


class EngineLane:
    """See libs.lane.stage.Lane."""

    ready = True

    def __init__(self, loop: Loop, wire_s: float, engine: Engine, records: Mapping[str, Record]) -> None:
        self._loop = loop
        self._wire_s = wire_s
        self._engine = engine
        self._records = records

    def submit(self, work_id: int, work: Work) -> None:
        record = self._records.get(work.request_id) or _own(work)
        self._loop.after(self._wire_s, lambda: self._engine.submit(work_id, work, record))

    def cancel(self, work_id: int) -> None:
        self._loop.after(self._wire_s, lambda: self._engine.cancel(work_id))

    def close(self) -> None:
        """A simulation ends with its last work: nothing is left to cancel."""


def _own(work: Work) -> Record:
    """The record of a work that the batcher itself made, to warm a cache."""
    return Record(0, Arrival(0.0, work.tenant, work.tier, len(work.prompt), work.sampling.max_tokens, (), 0))
