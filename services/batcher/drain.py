"""How fast the queue of a pool is worked off: what the bound of the queue and every promise rest on. Pure.

Measured where it can be, foreseen where it cannot. While works wait, the prompt tokens that leave the queue per
second are the rate, whatever the bottleneck is: prefill, slots or blocks. Before that it is foreseen by Little's
law: so many works at once, each for as long as works stay, but no more than the prefill rate allows. The forecast
is what the measurement starts from, and counts as much as PRIOR_S of it.
"""

HALF_LIFE_S = 5.0
"""Of time in which works wait, after which a sample counts half."""
PRIOR_S = 1.0
"""Weight of the forecast when works begin to wait, as seconds of measuring."""
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

    def observe(self, waiting: bool, forecast: float, now: float) -> None:
        """To be told when the queue becomes empty or does so no more, and now and then.

        Args:
            forecast: Tokens per second, from `forecast`; 0 when unknown.
        """
        self._pass(now)
        if waiting and not self._busy and forecast:
            self._amount, self._seconds = forecast * PRIOR_S, PRIOR_S
        self._busy = waiting

    def left(self, tokens: int, now: float) -> None:
        """A work left the queue for an executor."""
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
        """Whether works waited at the last look."""
        return self._busy

    @property
    def rate(self) -> float:
        """Prompt tokens per second while works wait, as measured; 0 before anything was."""
        return self._amount / self._seconds if self._busy and self._seconds else 0.0

    def _pass(self, now: float) -> None:
        passed = max(now - self._since, 0.0)
        self._since = now
        if self._busy and passed:
            kept = 0.5 ** (passed / HALF_LIFE_S)
            self._amount *= kept
            self._seconds = self._seconds * kept + passed
