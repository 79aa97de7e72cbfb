"""How long answers become: quantiles of the lengths seen, per tenant and model. Pure.

Each pair has two histograms with logarithmic buckets (DDSketch: Masson, Rim and Lee, VLDB 2019): a quantile is
within ERROR of a length that was seen, whatever their distribution. Samples lose half of their weight with each
HALF_LIFE answers of the pair.

An answer that was cut (by max_tokens, or because nobody wanted the rest) says only that its length is at least
that. So the quantile is that of the Kaplan-Meier estimator (Kaplan and Meier, JASA 1958): a cut answer counts among
those that can end up to where it was cut, and not as one that ended there. Where so many were cut that the
quantile lies beyond all that ended, nothing is known, and the answer is max_tokens: the safe one.
"""

from array import array
from collections import OrderedDict
from math import ceil, log

import numpy as np

ERROR = 0.05
"""Relative, of a quantile; at lengths under 10 rounding to a whole token is coarser."""
HALF_LIFE = 1000
"""Answers after which one counts half."""
LEAST_SAMPLES = 32
"""With fewer nothing is concluded."""
MOST_PAIRS = 4096
"""Histogram pairs kept, those of whole models among them; of more, the least recently used goes. A pair takes
3 kB, all together 12 MB."""
MOST_TOKENS = 1 << 20
"""Longer answers count as this long."""

_GAMMA = (1 + ERROR) / (1 - ERROR)
_SCALE = 1 / log(_GAMMA)
_BUCKETS = ceil(log(MOST_TOKENS) * _SCALE) + 1
_MIDDLES = 2 * _GAMMA ** np.arange(_BUCKETS) / (_GAMMA + 1)
"""Of bucket i, which holds the lengths in (γ^(i−1), γ^i]: within ERROR of each of them."""
_BUCKET = [0, *(ceil(log(tokens) * _SCALE - 1e-9) for tokens in range(1, 4097))]
"""Of the usual lengths: a table is faster than a logarithm."""
_GROWTH = 2.0 ** (1 / HALF_LIFE)
_HEAVY = 2.0**40
"""New samples weigh more instead of old ones less; when they weigh this much, all are scaled down."""
_STALE = 16
"""A quantile is computed anew after so many answers of the pair, or after a sixteenth of all there were: computing
one takes 15 µs."""
_MOST_QUANTILES = 8
"""Remembered per pair, so that a caller with ever new ones does not fill memory."""


class Lengths:
    """Lengths of answers by tenant and model, and by model over all tenants. At most MOST_PAIRS of both."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[tuple[str, str] | str, _Histogram] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def seen(self, tenant: str, model: str, output_tokens: int, cut: bool = False) -> None:
        """An answer ended.

        Args:
            output_tokens: Of the whole answer, resumed ones included. Answers without a token do not count.
            cut: It would have gone on: max_tokens was reached, or it was cancelled.
        """
        if output_tokens < 1:
            return
        bucket = _bucket(output_tokens)
        self._pair((tenant, model)).add(bucket, cut)
        self._pair(model).add(bucket, cut)

    def expected(self, tenant: str, model: str, max_tokens: int, quantile: float) -> int:
        """The length that an answer does not pass with probability `quantile`; at least 1, at most max_tokens.

        That of the tenant's answers; of all answers of the model while the tenant has fewer than LEAST_SAMPLES;
        max_tokens while these are too few as well.

        Args:
            quantile: Above 0, below 1.
        """
        for key in ((tenant, model), model):
            pair = self._pairs.get(key)
            if pair is not None and pair.samples >= LEAST_SAMPLES:
                self._pairs.move_to_end(key)
                return max(min(pair.quantile(quantile), max_tokens), 1)
        return max(max_tokens, 1)

    def _pair(self, key: tuple[str, str] | str) -> "_Histogram":
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= MOST_PAIRS:
                self._pairs.popitem(last=False)
            pair = self._pairs[key] = _Histogram()
        else:
            self._pairs.move_to_end(key)
        return pair


class _Histogram:
    """Weights of the answers that ended, and of those that were cut, by bucket."""

    __slots__ = ("_anew", "_cut", "_ended", "_quantiles", "_weight", "samples")

    def __init__(self) -> None:
        self._ended = array("d", bytes(8 * _BUCKETS))
        self._cut = array("d", bytes(8 * _BUCKETS))
        self._weight = 1.0
        self.samples = 0
        self._quantiles: dict[float, int] = {}
        self._anew = 0
        """At so many samples these are computed anew."""

    def add(self, bucket: int, cut: bool) -> None:
        side = self._cut if cut else self._ended
        side[bucket] += self._weight
        self.samples += 1
        self._weight *= _GROWTH
        if self._weight > _HEAVY:
            for weights in (self._ended, self._cut):
                np.frombuffer(weights)[:] /= self._weight
            self._weight = 1.0
        if self.samples >= self._anew:
            self._quantiles.clear()
            self._anew = self.samples + min(self.samples // _STALE + 1, _STALE)

    def quantile(self, quantile: float) -> int:
        known = self._quantiles.get(quantile)
        if known is None:
            if len(self._quantiles) >= _MOST_QUANTILES:
                self._quantiles.clear()
            known = self._quantiles[quantile] = self._compute(quantile)
        return known

    def _compute(self, quantile: float) -> int:
        """Kaplan-Meier: of those that are still at risk in a bucket, the share that does not end there, multiplied
        up. Those cut in a bucket were at risk in it."""
        ended = np.frombuffer(self._ended)
        at_risk = np.cumsum((ended + np.frombuffer(self._cut))[::-1])[::-1]
        longer = np.cumprod(1 - ended / np.maximum(at_risk, 1e-300))
        bucket = int(np.searchsorted(-longer, quantile - 1 - 1e-9))
        return round(_MIDDLES[bucket]) if bucket < _BUCKETS else MOST_TOKENS


def _bucket(tokens: int) -> int:
    if tokens < len(_BUCKET):
        return _BUCKET[tokens]
    return min(ceil(log(tokens) * _SCALE - 1e-9), _BUCKETS - 1)
