"""Passes works on to one of several neighbours, and again when a lane breaks: admission's way to the
routers, and a router's way to the batchers.

Every work is kept, with the tokens that have passed, until its outcome has passed. When the neighbour that
has it is gone, it goes to another one, or to the same one restarted, as prompt plus resumed tokens: the
stage in front sees a pause, never a gap or a repeat.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog
from msgspec.structs import replace

from libs.clock import Clock
from libs.errors import Cancelled, DeadlinePassed, HeadraceError, StageUnavailable
from libs.lane.deadlines import Deadlines
from libs.lane.frame import Frame
from libs.lane.passages import Passages
from libs.lane.passing import pass_on
from libs.lane.progress import Progress
from libs.lane.stage import Lane, Sink, Stage
from libs.lane.work import Decision, FinishReason, Note, Outcome, QueueState, Work

log = structlog.get_logger()

PATIENCE_S = 10.0
"""New works wait for a neighbour this long after the last one was seen; then they are refused at once."""
BACKSTOP_S = 1.0
"""A stage gives up this long after a deadline: the stages behind know better where the work stood."""
ATTEMPTS = 10
"""A work that was sent this often without a single new token is given up: it may be what breaks them."""
DRAINING = "draining"
"""Set in the metadata of the StageUnavailable with which a draining stage hands new works back."""
NOBODY = "nobody"
"""Set in the metadata of the StageUnavailable of a work that no stage behind has taken: it says nothing of its pool."""

Choose = Callable[[Work, Sequence[str]], str]
"""Picks one of the ready neighbours, given in order of their names; pure."""


class Flight:
    """A work that has been taken and has no outcome yet."""

    __slots__ = ("attempts", "cancelled", "down_id", "lane", "neighbour", "progress", "sent_tokens", "up_id")

    def __init__(self, lane: "ForwarderLane", down_id: int, work: Work) -> None:
        self.lane = lane
        self.down_id = down_id
        self.progress = Progress(work)
        self.neighbour: _Neighbour | None = None
        self.up_id = 0
        """Its number among the passages, and behind: another one each time that it is sent."""
        self.sent_tokens = len(work.resumed)
        self.attempts = 0
        self.cancelled = False

    @property
    def live(self) -> bool:
        """Whether its outcome is still awaited."""
        return self.lane.flights.get(self.down_id) is self


class Forwarder:
    """A Stage made of the stages behind it.

    Args:
        name: This stage's name, for errors.
        choose: Which neighbour gets a work.
        clock: For deadlines.
        resent: Told of each work that is sent again.

    Bounded by the works in flight that its lanes allow.
    """

    def __init__(
        self, name: str, choose: Choose, clock: Clock, resent: Callable[[Work], None] = lambda work: None
    ) -> None:
        self.name = name
        self._choose = choose
        self._clock = clock
        self._resent = resent
        self._neighbours: dict[str, _Neighbour] = {}
        self._parked: dict[Flight, None] = {}
        self._passages: Passages[Flight] = Passages()
        self._deadlines = Deadlines(self._passages.works)
        self._sequence = 0
        self._last_ready = clock.monotonic()

    # --- the stages behind -------------------------------------------------------------------------

    def set_neighbours(self, stages: Mapping[str, Stage]) -> None:
        """Replaces the set of neighbours; a Stage equal to the one known keeps its lane.

        A neighbour that is left out gets no new works and keeps those that it has until its lane breaks or
        they end: it may be draining.
        """
        for name, neighbour in self._neighbours.items():
            if name not in stages or stages[name] is not neighbour.stage:
                neighbour.retired = True
        for name, stage in stages.items():
            known = self._neighbours.get(name)
            if known is None or known.stage is not stage:
                if known is not None:
                    self._neighbours[f"{name} (before {self._next()})"] = known
                self._neighbours[name] = neighbour = _Neighbour(self, name, stage)
                neighbour.lane = stage.open(neighbour)
                if neighbour.lane.ready:
                    neighbour.on_ready()
            else:
                known.retired = False
        self._bury()

    def ready_neighbours(self) -> list[str]:
        """Names of the neighbours that would take a work now, in order."""
        return sorted(n for n, x in self._neighbours.items() if not x.retired and x.lane is not None and x.lane.ready)

    @property
    def in_flight(self) -> int:
        """Works without an outcome."""
        return sum(len(n.flights) for n in self._neighbours.values()) + len(self._parked)

    def expire(self) -> None:
        """Ends what is past its deadline. To be called several times a second."""
        if self.ready_neighbours():
            self._last_ready = self._clock.monotonic()
        self._deadlines.prune()
        for flight in self._deadlines.passed(self._clock.now() - BACKSTOP_S):
            self._abandon(flight)
            stage = self.name if flight.neighbour is None else f"behind {self.name}"
            self._end(flight, _failed(DeadlinePassed("the deadline passed", metadata={"stage": stage}), flight))

    def close(self) -> None:
        """Closes the lanes to all neighbours."""
        for neighbour in self._neighbours.values():
            if neighbour.lane is not None:
                neighbour.lane.close()

    # --- the face to the stage in front ------------------------------------------------------------

    def open(self, sink: Sink) -> "ForwarderLane":
        """A lane that is ready at once: works wait here when no neighbour is."""
        return ForwarderLane(self, sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """What the chosen neighbour says."""
        ready = self.ready_neighbours()
        if not ready:
            return [Decision(self.name, "wait", "no stage behind is ready")]
        name = self._choose(work, ready)
        return await self._neighbours[name].stage.explain(work)

    async def queues(self) -> Sequence[QueueState]:
        """Nothing is queued in a forwarder; asks nobody."""
        return []

    # --- flights -----------------------------------------------------------------------------------

    def _take(self, flight: Flight) -> None:
        flight.up_id = self._passages.next()
        self._passages.enter(flight.up_id, flight)
        self._deadlines.add(flight.progress.work.deadline, flight.up_id)
        ready = self.ready_neighbours()
        if not ready and self._clock.monotonic() - self._last_ready > PATIENCE_S:
            error = StageUnavailable(
                f"nothing behind {self.name} is ready", metadata={NOBODY: "true"}, retry_after_s=1.0
            )
            self._end(flight, _failed(error, flight))
            return
        self._send(flight, ready)

    def _send(self, flight: Flight, ready: Sequence[str]) -> None:
        """Sends a flight to a neighbour, or parks it until there is one."""
        flight.neighbour = None
        if not flight.live:
            return
        if flight.cancelled:
            self._end(flight, _failed(Cancelled("cancelled by the caller"), flight))
            return
        if not ready:
            self._parked[flight] = None
            return
        neighbour = self._neighbours[self._choose(flight.progress.work, ready)]
        assert neighbour.lane is not None
        flight.neighbour = neighbour
        neighbour.flights[flight.up_id] = flight
        self._passages.stream(flight.up_id, neighbour)
        neighbour.lane.submit(flight.up_id, flight.progress.resume())

    def _resend(self, flight: Flight, *, counts: bool = True) -> None:
        """Sends a flight again, unless the tokens that have come are already the whole answer.

        Args:
            counts: Whether this was an attempt; being handed back by who leaves is none.
        """
        if not flight.live:  # ended by whoever was told of the one before it
            return
        flight.up_id = self._passages.renumber(flight.up_id)  # the old one is in use behind until its outcome comes
        self._deadlines.add(flight.progress.work.deadline, flight.up_id)
        tokens = flight.progress.count
        if counts:
            flight.attempts = flight.attempts + 1 if tokens == flight.sent_tokens else 0
        flight.sent_tokens = tokens
        if flight.cancelled:
            self._end(flight, _failed(Cancelled("cancelled by the caller"), flight))
        elif tokens >= flight.progress.work.sampling.max_tokens:
            self._end(flight, Outcome(finish=FinishReason.LENGTH, output_tokens=tokens))
        elif flight.attempts >= ATTEMPTS:
            error = StageUnavailable(
                f"given up behind {self.name} after {ATTEMPTS} attempts", metadata={NOBODY: "true"}, retry_after_s=1.0
            )
            self._end(flight, _failed(error, flight))
        else:
            self._resent(flight.progress.work)
            self._send(flight, self.ready_neighbours())

    def _abandon(self, flight: Flight) -> None:
        """Takes a flight from wherever it is, and stops it there."""
        self._parked.pop(flight, None)
        self._passages.stream(flight.up_id, None)
        neighbour = flight.neighbour
        if neighbour is not None and neighbour.flights.pop(flight.up_id, None) is not None:
            assert neighbour.lane is not None
            neighbour.lane.cancel(flight.up_id)
            if neighbour.retired:
                self._bury()

    def _forget(self, flight: Flight) -> None:
        """Abandons a flight of which nobody wants to hear any more."""
        self._abandon(flight)
        self._passages.leave(flight.up_id)

    def _cancel(self, flight: Flight) -> None:
        """Parked works end here; the others where they run, so that what they used is known."""
        flight.cancelled = True
        if flight in self._parked:
            del self._parked[flight]
            self._end(flight, _failed(Cancelled("cancelled by the caller"), flight))
        elif flight.neighbour is not None and flight.neighbour.lane is not None:
            flight.neighbour.lane.cancel(flight.up_id)

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        if flight.lane.flights.pop(flight.down_id, None) is not None:
            self._passages.leave(flight.up_id)
            if outcome.error is not None and outcome.output_tokens != flight.progress.count:
                # Whether an answer has begun is decided by what has passed here, not by what somebody has made.
                outcome = replace(outcome, output_tokens=flight.progress.count)
            flight.lane.sink.on_outcome(flight.down_id, outcome)

    def _neighbour_ready(self) -> None:
        self._last_ready = self._clock.monotonic()
        parked, self._parked = list(self._parked), {}
        for flight in parked:
            self._send(flight, self.ready_neighbours())

    def _bury(self) -> None:
        """Closes lanes of retired neighbours that have nothing left to say."""
        for name in [n for n, x in self._neighbours.items() if x.retired and not x.flights]:
            neighbour = self._neighbours.pop(name)
            if neighbour.lane is not None:
                neighbour.lane.close()

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


class ForwarderLane:
    """The lane of a stage in front; see libs.lane.stage.Lane."""

    ready = True

    def __init__(self, forwarder: Forwarder, sink: Sink) -> None:
        self.sink = sink
        self.flights: dict[int, Flight] = {}
        self._forwarder = forwarder

    def submit(self, work_id: int, work: Work) -> None:
        flight = self.flights[work_id] = Flight(self, work_id, work)
        self._forwarder._take(flight)

    def cancel(self, work_id: int) -> None:
        if (flight := self.flights.get(work_id)) is not None:
            self._forwarder._cancel(flight)

    def forget(self, work_id: int) -> None:
        """Stops a work of which nothing more is to come: neither tokens nor an outcome. The id is free at once.

        Within a frame that is being passed on, tokens of it may still come.
        """
        if (flight := self.flights.pop(work_id, None)) is not None:
            self._forwarder._forget(flight)

    def passed(self, work_id: int) -> int:
        """Tokens of a running work's answer that have passed, those that it came with included."""
        return self.flights[work_id].progress.count

    def close(self) -> None:
        flights, self.flights = list(self.flights.values()), {}
        for flight in flights:
            self._forwarder._forget(flight)


class _Neighbour:
    """A stage behind: its lane, what it has, and the sink for what comes from it."""

    def __init__(self, forwarder: Forwarder, name: str, stage: Stage) -> None:
        self.stage = stage
        self.lane: Lane | None = None
        self.retired = False
        self.flights: dict[int, Flight] = {}
        self._forwarder = forwarder
        self._name = name

    def on_ready(self) -> None:
        if self.lane is not None:  # else `open` has not returned yet, and set_neighbours sees to it
            self._forwarder._neighbour_ready()

    def on_frame(self, frame: Frame) -> None:
        for flight, gap in pass_on(frame, self._forwarder._passages, self).items():
            log.error("gap on a lane", neighbour=self._name, gap=str(gap))
            self._forwarder._abandon(flight)
            self._forwarder._resend(flight)

    def on_note(self, work_id: int, note: Note) -> None:
        flight = self.flights.get(work_id)
        if flight is None:
            return
        if note.restart:
            flight.progress.restart()
            flight.sent_tokens = 0
        if note.pool:  # wherever it goes on from, it goes on there
            flight.progress.work = replace(flight.progress.work, pool=note.pool)
        flight.lane.sink.on_note(flight.down_id, note)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        flight = self.flights.pop(work_id, None)
        if flight is None:
            return
        if outcome.error is not None and outcome.error.metadata.get(DRAINING):  # another one may take it
            self.retired = True
            self._forwarder._resend(flight, counts=False)
        else:
            self._forwarder._end(flight, outcome)
        if self.retired:
            self._forwarder._bury()

    def on_broken(self, reason: str) -> None:
        lost, self.flights = list(self.flights.values()), {}
        for flight in lost:
            self._forwarder._resend(flight)
        if self.retired:
            self._forwarder._bury()


def _failed(error: HeadraceError, flight: Flight) -> Outcome:
    return Outcome(error=error, output_tokens=flight.progress.count)
