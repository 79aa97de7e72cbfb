"""How fast the queue of a pool is worked off: what the bound of the queue and every promise rest on. Pure.

Measured where it can be, foreseen where it cannot. While a work waits that finds no place, the prompt tokens that go
to executors per second are the rate, whatever the bottleneck is: prefill, slots or blocks. (At any other time they
only say how much is asked for.) Before that it is foreseen by Little's law: so many works at once, each for as long as
works stay, but no more than the prefill rate allows. A measurement starts from the forecast, and leaves it behind when
it is PRIOR_S long: what is foreseen at a cold start can be several times too high.

Little's law bounds the measurement as well, by the works that run now. An empty mesh that is flooded takes in as many
prompts as it can compute, and then none until the first answers end: for some seconds what left is not what will.
"""

HALF_LIFE_S = 5.0
"""After which a sample counts half."""
PRIOR_S = 1.0
"""Seconds of measuring that are needed; as far as they are lacking the forecast takes their place."""
STAY_WEIGHT = 0.05
"""Of the newest work, in the mean of how long works stay."""


class Flow:
    """What passes per second of the time that counts; it forgets exponentially. Times are monotonic seconds."""

    __slots__ = ("_since", "amount", "counts", "seconds")

    def __init__(self) -> None:
        self.amount = 0.0
        self.seconds = 0.0
        """Time that counted."""
        self.counts = False
        """Whether time counts now."""
        self._since = 0.0

    def observe(self, counts: bool, now: float) -> None:
        """Time counts from now on, or no more."""
        self._pass(now)
        self.counts = counts

    def add(self, amount: float, now: float) -> None:
        """So much has passed. What passes while time does not count is left out."""
        if self.counts:
            self._pass(now)
            self.amount += amount

    def _pass(self, now: float) -> None:
        passed = max(now - self._since, 0.0)
        self._since = now
        if passed:
            kept = 0.5 ** (passed / HALF_LIFE_S)
            self.amount *= kept
            self.seconds = self.seconds * kept + (passed if self.counts else 0.0)


class Drain:
    """The drain of one pool's queue. Times are monotonic seconds, amounts prompt tokens."""

    __slots__ = ("_left", "_prompt", "_stay_s")

    def __init__(self) -> None:
        self._left = Flow()
        """Counts while a work waits that finds no place."""
        self._stay_s = 0.0
        self._prompt = 0.0

    def observe(self, stuck: bool, now: float) -> None:
        """To be told when a work begins to wait that finds no place, when none does any more, and now and then."""
        self._left.observe(stuck, now)

    def left(self, tokens: int, now: float) -> None:
        """A work that was in the queue was sent to an engine."""
        self._prompt += (tokens - self._prompt) * (STAY_WEIGHT if self._prompt else 1.0)
        self._left.add(tokens, now)

    def stayed(self, seconds: float) -> None:
        """A work ended that well, after so long on its executor."""
        self._stay_s += (seconds - self._stay_s) * (STAY_WEIGHT if self._stay_s else 1.0)

    @property
    def busy(self) -> bool:
        """Whether a work waited at the last look that found no place."""
        return self._left.counts

    def rate(self, at_once: int, prefill_rate: float, computed_share: float) -> float:
        """Prompt tokens per second that leave the queue: as measured while works wait; foreseen while none does, and
        as far as too little was measured; 0 when nothing is known. Changes nothing.

        Args:
            at_once: Works that the pool runs at once: those that run now while works wait, else as many as it has
                slots for.
            prefill_rate: Of the whole pool, in tokens computed per second.
            computed_share: Share of prompt tokens that has to be computed.
        """
        by_stay = at_once * self._prompt / self._stay_s if self._stay_s else 0.0
        by_prefill = prefill_rate / max(computed_share, 0.02)
        forecast = min(by_prefill, by_stay) if by_prefill and by_stay else by_prefill or by_stay
        left = self._left
        lacking = max(PRIOR_S - left.seconds, 0.0)
        if not left.counts or (lacking and not forecast):
            return forecast
        measured = (left.amount + forecast * lacking) / (left.seconds + lacking)
        return min(measured, by_stay) if by_stay else measured
