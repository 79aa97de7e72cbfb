"""What is known of one request while it runs: written by the engines, read at the end. Pure."""

from services.simulator.values import Arrival, Served


class Record:
    """A request on its way. It may run on several engines, one after the other. Times are virtual seconds."""

    __slots__ = ("arrival", "first_at", "last_at", "number", "outputs", "served", "starts", "worst_gap_s")

    def __init__(self, number: int, arrival: Arrival) -> None:
        self.number = number
        self.arrival = arrival
        self.starts = 0
        """How often an engine was given it."""
        self.outputs = 0
        """Tokens that engines have made, each counted once."""
        self.first_at: float | None = None
        self.last_at = 0.0
        """When its last token came, of those up to the last time that it entered or left an engine's batch."""
        self.worst_gap_s = 0.0
        self.served: Served | None = None

    def entered(self, now: float, outputs: int) -> None:
        """An engine has computed its prompt, and made the next token, the last of `outputs`."""
        if self.first_at is None:
            self.first_at = now
        elif now - self.last_at > self.worst_gap_s:
            self.worst_gap_s = now - self.last_at
        self.last_at = now
        self.outputs = max(self.outputs, outputs)

    def left(self, at: float, outputs: int, worst_gap_s: float) -> None:
        """It left a batch after `outputs` tokens, the last of them made at `at`."""
        self.last_at = at
        self.outputs = max(self.outputs, outputs)
        self.worst_gap_s = max(self.worst_gap_s, worst_gap_s)

    def end(self, now: float, reason: str, queued_s: float, cached_tokens: int, executor: str) -> Served:
        """Its outcome came; `reason` is OK or an error's."""
        arrival, first = self.arrival, self.first_at
        gaps = self.outputs - 1
        self.served = Served(
            arrival=arrival,
            outcome=reason,
            queued_s=queued_s,
            first_token_s=None if first is None else first - arrival.at,
            end_s=now - arrival.at,
            cached_tokens=cached_tokens,
            output_tokens=self.outputs,
            executor=executor,
            worst_gap_s=self.worst_gap_s,
            mean_gap_s=(self.last_at - first) / gaps if first is not None and gaps > 0 else 0.0,
            pushes=max(self.starts - 1, 0),
        )
        return self.served
