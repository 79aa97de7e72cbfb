"""How fast the queue of a pool is worked off: what the bound of the queue and every promise rest on. Pure.

Measured where it can be, foreseen where it cannot. While a work waits that finds no place, the prompt tokens that go
to executors per second are the rate, whatever the bottleneck is: prefill, slots or blocks. (At any other time they
only say how much is asked for.) Before that it is foreseen by Little's law: so many works at once, each for as long as
works stay, but no more than the prefill rate allows. A measurement starts from the forecast, and leaves it behind when
it is PRIOR_S long: what is foreseen at a cold start can be several times too high.
"""

HALF_LIFE_S = 5.0
"""After which a sample counts half."""
PRIOR_S = 1.0
"""Seconds of measuring that are needed; as far as they are lacking the forecast takes their place."""
STAY_WEIGHT = 0.05
"""Of the newest work, in the mean of how long works stay."""


class Drain:
    """The drain of one pool's queue. Times are monotonic seconds, amounts prompt tokens."""

    __slots__ = ("_amount", "_busy", "_prompt", "_seconds", "_since", "_stay_s")

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0
        self._since = 0.0
        self._busy = False
        self._stay_s = 0.0
        self._prompt = 0.0

    def observe(self, stuck: bool, now: float) -> None:
        """To be told when a work begins to wait that finds no place, when none does any more, and now and then."""
        self._pass(now)
        self._busy = stuck

    def left(self, tokens: int, now: float) -> None:
        """A work that was in the queue was sent to an engine."""
        self._prompt += (tokens - self._prompt) * (STAY_WEIGHT if self._prompt else 1.0)
        if self._busy:
            self._pass(now)
            self._amount += tokens

    def stayed(self, seconds: float) -> None:
        """A work ended that well, after so long on its executor."""
        self._stay_s += (seconds - self._stay_s) * (STAY_WEIGHT if self._stay_s else 1.0)

    def forecast(self, at_once: int, prefill_rate: float, computed_share: float) -> float:
        """Prompt tokens per second that could leave the queue; 0 when nothing was measured.

        Args:
            at_once: Works that the pool runs at once.
            prefill_rate: Of the whole pool, in tokens computed per second.
            computed_share: Share of prompt tokens that has to be computed.
        """
        by_prefill = prefill_rate / max(computed_share, 0.02)
        by_stay = at_once * self._prompt / self._stay_s if self._stay_s else 0.0
        return min(by_prefill, by_stay) if by_prefill and by_stay else by_prefill or by_stay

    @property
    def busy(self) -> bool:
        """Whether a work waited at the last look that found no place."""
        return self._busy

    def rate(self, forecast: float) -> float:
        """Prompt tokens per second: as measured while works wait; foreseen while none does, and as far as too little
        was measured; 0 when nothing is known. Changes nothing."""
        lacking = max(PRIOR_S - self._seconds, 0.0)
        if not self._busy or (lacking and not forecast):
            return forecast
        return (self._amount + forecast * lacking) / (self._seconds + lacking)

    def _pass(self, now: float) -> None:
        passed = max(now - self._since, 0.0)
        self._since = now
        if passed:
            kept = 0.5 ** (passed / HALF_LIFE_S)
            self._amount *= kept
            self._seconds = self._seconds * kept + (passed if self._busy else 0.0)
