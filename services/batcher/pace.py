"""How long a prompt takes on an executor: by its length, and by how much lies in front of each token. Pure.

Attention makes the tokens of a long prompt dearer than those of a short one: on an H100 with an 8-billion-parameter
model a token behind 85,000 others costs 3.7 times what the first one costs. A mean rate would promise such a prompt
in half of its time, and let others queue up behind it. So seconds per token are fitted as a + b × mean context:
weighted least squares over what was seen, forgetting exponentially.
"""

HALF_LIFE_TOKENS = 500_000.0
"""Prompt tokens after which a sample counts half."""
LEAST_TOKENS = 2048
"""With fewer nothing is foreseen."""


class Pace:
    """The prefill of one executor's copy."""

    __slots__ = ("_a", "_b", "_w", "_wx", "_wxx", "_wxy", "_wy")

    def __init__(self) -> None:
        self._w = self._wx = self._wy = self._wxx = self._wxy = 0.0
        self._a = self._b = 0.0

    def add(self, prompt_tokens: int, remembered: int, seconds: float) -> None:
        """A prompt was computed, but for what was remembered of it."""
        tokens = prompt_tokens - remembered
        if tokens <= 0 or seconds < 0:
            return
        x, y = (prompt_tokens + remembered) / 2, seconds / tokens
        kept = 0.5 ** (tokens / HALF_LIFE_TOKENS)
        self._w = self._w * kept + tokens
        self._wx = self._wx * kept + tokens * x
        self._wy = self._wy * kept + tokens * y
        self._wxx = self._wxx * kept + tokens * x * x
        self._wxy = self._wxy * kept + tokens * x * y
        self._fit()

    def seconds(self, prompt_tokens: int, remembered: int) -> float:
        """How long a prompt will take by itself; 0 when too little was seen."""
        tokens = prompt_tokens - remembered
        return tokens * (self._a + self._b * (prompt_tokens + remembered) / 2) if self._w >= LEAST_TOKENS else 0.0

    def _fit(self) -> None:
        spread = self._w * self._wxx - self._wx * self._wx
        slope = (self._w * self._wxy - self._wx * self._wy) / spread if spread > 1e-6 * self._wx * self._wx else 0.0
        base = (self._wy - slope * self._wx) / self._w
        if slope < 0 or base < 0:  # all prompts alike, or noise: the mean alone is known
            slope, base = 0.0, self._wy / self._w
        self._a, self._b = base, slope
