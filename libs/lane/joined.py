"""Frames that accumulated become one. Pure.

Every stage behind pays per entry, so several steps of one work are joined here, once, before they leave.
"""

from collections.abc import Sequence

import numpy as np

from libs.lane.frame import COUNT, LOG_PROB, NO_LOG_PROBS, Frame, LogProbs


def joined(frames: Sequence[Frame]) -> Frame:
    """The tokens of all these frames, of which none is empty, with one entry per work.

    A repeat or a gap keeps an entry of its own, since the receiver is to see it. Entries are in the order of their
    numbers, those of one work as they came.
    """
    if len(frames) == 1:
        return frames[0]
    numbers = np.concatenate([frame.work_ids for frame in frames])
    offsets = np.concatenate([frame.offsets for frame in frames])
    counts = np.concatenate([frame.counts for frame in frames])
    tokens = np.concatenate([frame.token_ids for frame in frames])
    log_probs = _log_probs(frames)
    order = numbers.argsort(kind="stable")
    starts = counts.cumsum(dtype=np.int64) - counts  # of each entry's tokens
    numbers, offsets, counts, starts = numbers[order], offsets[order], counts[order], starts[order]
    ends = counts.cumsum(dtype=np.int64)
    places = (starts + counts - ends).repeat(counts) + np.arange(len(tokens))  # so far on are they now
    tokens = tokens[places]
    if len(log_probs):
        log_probs = log_probs[places]
    begins = np.ones(len(numbers), bool)
    begins[1:] = (numbers[1:] != numbers[:-1]) | (offsets[1:] != offsets[:-1] + counts[:-1])
    (firsts,) = begins.nonzero()
    sizes = np.add.reduceat(counts, firsts, dtype=COUNT)
    return Frame(numbers[firsts], offsets[firsts], sizes, tokens, log_probs)


def _log_probs(frames: Sequence[Frame]) -> LogProbs:
    """None if none has any; else NaN for the tokens of those that have none."""
    if not any(len(frame.log_probs) for frame in frames):
        return NO_LOG_PROBS
    return np.concatenate([
        frame.log_probs if len(frame.log_probs) else np.full(len(frame.token_ids), np.nan, LOG_PROB)
        for frame in frames
    ])  # fmt: skip
