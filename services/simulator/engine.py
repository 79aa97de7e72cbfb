"""A fast engine: a batch whose steps take their time, many at once. Pure.

Continuous batching with chunked prefill and real block accounting, step by step as in
services.executor.simulated.model (tests/sim compares the two). What makes it fast: while no prompt is computed,
steps differ only in their contexts, which grow by one token per sequence and step. So all steps up to the next one
that matters are one event, whose length is an arithmetic series; it is cut off at the end of the running step when
a work arrives or is cancelled. The time between tokens is kept once for all sequences, as the steps' durations.

Differences to SimulatedModel: the queue has no bound, an answer's length is given, and tokens behind the first are
passed on at the end of the answer, all at once.
"""

from collections.abc import Callable
from math import ceil, sqrt

from libs.catalogue.options import Simulation
from libs.lane.work import Work
from services.simulator.batch import Batch
from services.simulator.loop import Loop
from services.simulator.record import Record
from services.simulator.step import Told


class Engine:
    """Runs a batch whenever there is something to do.

    Args:
        tell: Gets what a step brought, at its end; not called when that is nothing.
    """

    def __init__(self, loop: Loop, times: Simulation, batch: Batch, tell: Callable[[Told], None]) -> None:
        self.batch = batch
        self.steps = 0
        """That have ended."""
        self.loop = loop
        self._times = times
        self._tell = tell
        self._cancels: list[int] = []
        self._busy = False
        self._run = 0  # numbers the events: one that was cut off is not the latest
        self._began = 0.0
        self._first_s = 0.0  # duration of the run's first step
        self._growth_s = 0.0  # how much longer each further one takes
        self._length = 1  # steps of the run

    def submit(self, work_id: int, work: Work, record: Record) -> None:
        """Takes a work in. Raises ValueError when the id is in use."""
        self.batch.submit(work_id, work, record)
        self._wake()

    def cancel(self, work_id: int) -> None:
        """Drops a work at the end of the running step; its outcome comes with the next one. Ignores unknown ids."""
        if self.batch.holds(work_id):
            if self._length > 1:
                self._cancels.append(work_id)
            else:
                self.batch.drop(work_id)
            self._wake()

    def _wake(self) -> None:
        """Something has come: begins a step soon, or cuts the run off at the end of the running step."""
        if not self._busy:
            self._busy, self._length = True, 1
            self.loop.at(self.loop.time, self._begin)
        elif self._length > 1:
            self._cut(self.loop.time)

    def _cut(self, time: float) -> None:
        """Ends the run with the step that runs at a time."""
        length = self._steps_until(time)
        if length < self._length:
            self._plan(length)

    def _plan(self, length: int) -> None:
        """The run ends after so many steps."""
        self._length = length
        self._run += 1
        run = self._run

        def end() -> None:
            if run == self._run:
                self._end()

        self.loop.at(max(self._began + self._duration(length), self.loop.time), end)

    def _duration(self, length: int) -> float:
        """Seconds that the first steps of the run take: an arithmetic series."""
        return length * self._first_s + self._growth_s * (length * (length - 1) / 2)

    def _steps_until(self, time: float) -> int:
        """How many steps of the run have ended, or end next, at a time; at least 1."""
        passed, growth = time - self._began, self._growth_s
        half = self._first_s - growth / 2
        divisor = half + sqrt(half * half + 2 * growth * passed)  # the series solved for its length
        return max(ceil(2 * passed / divisor), 1) if divisor > 0 else 1

    def _begin(self) -> None:
        """One step from its beginning, or as many as are alike."""
        load, step_s = self.batch.begin(self.loop.time), self._times.step_s
        self._began, self._first_s, self._growth_s = self.loop.time, 0.0, 0.0
        if load.decode or load.prefill:
            self._first_s = step_s(load.prefill, load.prefill_context, load.decode, load.decode_context)
            self._first_s += load.host_blocks * self._times.host_block_us / 1e6
        if load.alike > 1:
            self._growth_s = step_s(0, 0, load.decode, load.decode_context + load.decode) - self._first_s
        self._plan(load.alike)
        if load.alike > 1 and (expiry := self.batch.expiry) < self._began + self._duration(load.alike):
            self._cut(expiry)

    def _end(self) -> None:
        """The run's last step has ended."""
        length, self._length = self._length, 1
        self.steps += length
        batch = self.batch
        batch.repeat(length, self._first_s + self._growth_s * (length - 1))
        for work_id in self._cancels:
            batch.drop(work_id)
        self._cancels.clear()
        if told := batch.end(self.loop.time):
            self._tell(told)
        self._busy = not batch.idle
        if self._busy:
            self._begin()
