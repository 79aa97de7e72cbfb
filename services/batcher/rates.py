"""How fast one copy of a model is, measured from what the batcher sees of it anyway. Pure.

A work was placed with tokens to compute, its first token came, it ended: no engine has to say more. What is
measured is what a work gets there beside all others, chunked prefill and decoding sharing the steps; that is the
rate on which a promise can be built.

**Prefill** is measured over busy time: time in which at least one work has no token yet. Time without works does
not count. It is cut into stretches, from the first work that is placed to the last first token (or, on a copy that
is never without a prompt, once FULL_TOKENS and STRETCH_S have come together), and the rate is Σ w·tokens / Σ w·s
with w = min(tokens, FULL_TOKENS). Without this weight a copy that computes 50 tokens a step, because nobody asks
for more, would pass for a slow one: such a stretch measures the length of a step, not the rate. (BBR, Cardwell et
al., ACM Queue 2016, leaves such samples out as "application-limited"; here they count as long as there are no
better ones.)

**Decoding** is measured per answer, from its first token to its end, weighted by its tokens.

Both forget exponentially, in time in which there was something to measure. The first stretch of all meets an engine
that has just been loaded: it does not count, and the decoding of its works only until others have ended.
"""

from math import inf

HALF_LIFE_S = 20.0
"""Of busy time, after which a sample counts half."""
FULL_TOKENS = 4096
"""A stretch of more tokens counts no more per token: a few full steps of any engine (they hold 256 to 8,192)."""
STRETCH_S = 1.0
"""A stretch that has its FULL_TOKENS is cut when it is that long."""


class Rates:
    """The speed of one seat. Times are monotonic seconds; it holds as many works as were placed and have not ended.

    An engine that queues on its own counts as prefilling while it does.
    """

    __slots__ = (
        "_cold_decode", "_decode", "_decode_s", "_decoding", "_open_s", "_prefill", "_prefilling", "_since",
        "_stretch_s", "_stretch_tokens", "_warm_since",
    )  # fmt: skip

    def __init__(self) -> None:
        self._prefilling: dict[int, int] = {}
        """Tokens of the works without a token, in the order in which they came."""
        self._decoding: dict[int, float] = {}
        """When the first token of the others came."""
        self._since = 0.0
        """Up to when time has been counted."""
        self._open_s = 0.0
        """Busy time since the last first token."""
        self._stretch_s = 0.0
        """Busy time of the stretch up to there."""
        self._stretch_tokens = 0
        self._decode_s = 0.0
        """Time in which works decoded, since an answer was last counted."""
        self._warm_since = inf
        """When the first stretch ended."""
        self._prefill = _Ratio()
        self._decode = _Ratio()
        self._cold_decode = _Ratio()

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second while it prefills; 0 when nothing was measured."""
        return self._prefill.value

    @property
    def token_s(self) -> float:
        """Seconds from one token of a work to its next; 0 when nothing was measured."""
        pace = self._decode.value or self._cold_decode.value
        return 1 / pace if pace else 0.0

    def placed(self, key: int, tokens: int, now: float) -> None:
        """A work was sent there.

        Args:
            tokens: What it has to compute: prompt and resumed tokens, less those found in the cache.
        """
        self._advance(now)
        self._decoding.pop(key, None)
        self._prefilling[key] = max(tokens, 1)  # the last token is computed in any case

    def first_token(self, key: int, now: float) -> None:
        """The first token since it was placed. Ignored for a work that is not there, or has one."""
        tokens = self._prefilling.get(key)
        if tokens is None:
            return
        self._advance(now)
        del self._prefilling[key]
        self._decoding[key] = now
        self._stretch_tokens += tokens
        self._stretch_s += self._open_s
        self._open_s = 0.0
        full = self._stretch_tokens >= FULL_TOKENS and self._stretch_s >= STRETCH_S
        if full or not self._prefilling:
            self._end_stretch(now)

    def ended(self, key: int, now: float, output_tokens: int) -> None:
        """It runs there no more. Ignored for a work that is not there.

        Args:
            output_tokens: That were made there, without resumed ones; 0 when they are not to count: the executor
                was lost, and nobody knows when its last one came.
        """
        self._advance(now)
        if key in self._prefilling:
            self._drop(key, now)
        elif (first := self._decoding.pop(key, None)) is not None and output_tokens > 1 and now > first:
            ratio = self._decode if first > self._warm_since else self._cold_decode
            ratio.add(output_tokens - 1, now - first, 1.0, self._decode_s)
            self._decode_s = 0.0

    def _drop(self, key: int, now: float) -> None:
        """Forgets a work that never had a token. Engines compute prompts in the order in which they came, several
        in a step where they fit: so if it was the first, its share of the time since the last first token goes
        with it, and else it has cost nothing yet."""
        if key == next(iter(self._prefilling)):
            self._open_s *= 1 - self._prefilling[key] / sum(self._prefilling.values())
        del self._prefilling[key]
        if not self._prefilling:
            self._end_stretch(now)

    def _end_stretch(self, now: float) -> None:
        tokens, seconds = self._stretch_tokens, self._stretch_s
        self._stretch_tokens, self._stretch_s, self._open_s = 0, 0.0, 0.0
        if tokens and self._warm_since == inf:
            self._warm_since = now
        elif tokens and seconds > 0:
            self._prefill.add(tokens, seconds, float(min(tokens, FULL_TOKENS)), seconds)

    def _advance(self, now: float) -> None:
        passed = max(now - self._since, 0.0)
        self._since = now
        if self._prefilling:
            self._open_s += passed
        if self._decoding:
            self._decode_s += passed


class _Ratio:
    """A weighted Σ amount / Σ seconds that forgets."""

    __slots__ = ("amount", "seconds")

    def __init__(self) -> None:
        self.amount = 0.0
        self.seconds = 0.0

    @property
    def value(self) -> float:
        return self.amount / self.seconds if self.seconds else 0.0

    def add(self, amount: float, seconds: float, weight: float, passed_s: float) -> None:
        """A sample, `passed_s` of the clock by which it forgets after the one before."""
        kept: float = 0.5 ** (passed_s / HALF_LIFE_S)
        self.amount = self.amount * kept + weight * amount
        self.seconds = self.seconds * kept + weight * seconds
