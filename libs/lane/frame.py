"""Tokens on their way: frames as arrays, so that a stage pays per frame and not per token.

Whoever makes tokens writes a Draft, with lists; from there on everything is arrays, up to whoever needs Python values
again. An operation of numpy costs a third of a microsecond for one entry and for a hundred.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, repeat

import msgspec
import numpy as np
from numpy.typing import NDArray

from libs.lane.draft import Draft

Numbers = NDArray[np.int64]
Counts = NDArray[np.uint32]
LogProbs = NDArray[np.float32]

NUMBER, COUNT, LOG_PROB, HASH = np.dtype("<i8"), np.dtype("<u4"), np.dtype("<f4"), np.dtype("<u8")
"""As they stand on a lane: what lies in memory is what goes over the wire."""
if sys.byteorder != "little" or (array("I").itemsize, array("Q").itemsize) != (4, 8):
    raise ImportError("lanes need a machine that is little-endian, with integers of 32 and 64 bits")

NO_NUMBERS: Numbers = np.empty(0, NUMBER)
NO_COUNTS: Counts = np.empty(0, COUNT)
NO_LOG_PROBS: LogProbs = np.empty(0, LOG_PROB)


class Frame(msgspec.Struct, eq=False):
    """Tokens of one engine step, or of several that accumulated, as parallel arrays.

    `work_ids`, `offsets` and `counts` run in parallel; `token_ids` is the concatenation. `log_probs` is empty or has
    one entry per token, NaN where the work did not ask. Nobody changes an array that is in a frame, so frames may
    share them, and be kept.
    """

    work_ids: Numbers = NO_NUMBERS
    offsets: Counts = NO_COUNTS
    counts: Counts = NO_COUNTS
    token_ids: Counts = NO_COUNTS
    log_probs: LogProbs = NO_LOG_PROBS

    @classmethod
    def of(cls, draft: Draft) -> "Frame":
        """What has been written."""
        return cls(
            np.array(draft.work_ids, NUMBER),
            np.array(draft.offsets, COUNT),
            np.array(draft.counts, COUNT),
            np.array(draft.token_ids, COUNT),
            np.array(draft.log_probs, LOG_PROB) if draft.log_probs else NO_LOG_PROBS,
        )

    def __len__(self) -> int:
        """Entries."""
        return len(self.work_ids)

    def entries(self) -> "Iterator[Entry]":
        """Entry by entry, as Python values; the log-probabilities are empty where the frame has none."""
        counts, tokens, log_probs = self.counts.tolist(), self.token_ids.tolist(), self.log_probs.tolist()
        cuts = [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        told: Iterable[list[float]] = [log_probs[cut] for cut in cuts] if log_probs else repeat(log_probs)
        return zip(self.work_ids.tolist(), self.offsets.tolist(), [tokens[cut] for cut in cuts], told, strict=False)

    def chosen(self, places: Sequence[int], work_ids: Sequence[int]) -> "Frame":
        """The entries at some places, in their order, under other numbers."""
        numbers = np.array(work_ids, NUMBER)
        if len(places) == len(self):
            return self.under(numbers)
        taken = np.zeros(len(self), bool)
        taken[np.array(places, NUMBER)] = True
        return self.where(taken).under(numbers)

    def where(self, taken: NDArray[np.bool_]) -> "Frame":
        """The entries for which that is true."""
        tokens = taken if len(self.token_ids) == len(taken) else taken.repeat(self.counts)
        log_probs = self.log_probs[tokens] if len(self.log_probs) else self.log_probs
        return Frame(self.work_ids[taken], self.offsets[taken], self.counts[taken], self.token_ids[tokens], log_probs)

    def under(self, work_ids: Numbers) -> "Frame":
        """The same tokens under other numbers."""
        return Frame(work_ids, self.offsets, self.counts, self.token_ids, self.log_probs)


Entry = tuple[int, int, list[int], list[float]]
"""Number, offset, tokens and log-probabilities of a work in a frame. Only lent: entries may share an empty list."""
