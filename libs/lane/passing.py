"""Passing a frame on: what every token of the mesh runs through, at each stage.

It is a module of its own because it decides what a token costs. In the usual frame every work is known, all of them
came from one lane in front, and nothing is missing or repeated: then its arrays go on as they are, and only the numbers
change, in a dozen operations on whole arrays: 5 µs for one entry and 10 for 256. Whatever is unusual takes the general
way, entry by entry.
"""

from collections.abc import Mapping

import numpy as np

from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.passages import FrontLane, P, Passages
from libs.lane.progress import Gap


def pass_on(frame: Frame, passages: Passages[P], behind: object) -> Mapping[P, Gap]:
    """Gives each entry of a frame to the lane in front that its work came from: one frame per lane.

    Args:
        frame: From the lane behind.
        passages: The works of this stage, by their number on that lane. Entries of those whose tokens are not to come
            from there are dropped.
        behind: That lane, as `passages` knows it.

    Returns works some of whose tokens are missing; what came before the gap has passed.
    """
    return {} if _pass_on_whole(frame, passages, behind) else _pass_on_sorted(frame, passages, behind)


def _pass_on_whole(frame: Frame, passages: Passages[P], behind: object) -> bool:
    """Passes the frame on as it is, if it is a usual one; else does nothing.

    Whole columns are compared as bytes: that takes numpy's comparison out, and its answer's `all`.
    """
    numbers, entries = frame.work_ids, len(frame)
    if not 0 < entries <= passages.mask or np.count_nonzero(frame.counts) < entries:
        return False
    rows = numbers & passages.mask
    steps, lanes = passages.steps[:entries], passages.lanes[rows].tobytes()
    passages.marks[rows] = steps  # where two are of one row, the last one stays
    if (
        passages.numbers[rows].tobytes() != numbers.tobytes()
        or passages.counts[rows].tobytes() != frame.offsets.tobytes()
        or passages.behind[rows].tobytes() != _same(id(behind), entries)
        or passages.marks[rows].tobytes() != steps.tobytes()
        or lanes != lanes[:8] * entries
    ):
        return False
    lane = passages.works[int(numbers[0])].lane
    fronts = passages.fronts[rows]
    passages.counts[rows] = frame.offsets + frame.counts
    passages.log(frame)
    lane.sink.on_frame(frame.under(fronts))
    return True


def _same(identity: int, entries: int) -> bytes:
    return identity.to_bytes(8, "little") * entries


def _pass_on_sorted(frame: Frame, passages: Passages[P], behind: object) -> Mapping[P, Gap]:
    passed: dict[FrontLane, Draft] = {}
    taken = Draft()
    gaps: dict[P, Gap] = {}
    for number, offset, tokens, log_probs in frame.entries():
        passage = passages.works.get(number)
        if passage is None or not passages.streams(number, behind):
            continue  # cancelled, or past its deadline
        known = passages.count(number) - offset
        if known < 0:
            missing = f"{-known} tokens are missing in front of offset {offset}"
            gaps.setdefault(passage, Gap(f"{passage.progress.work.request_id}: {missing}"))
        elif known < len(tokens):
            passages.advance(number, len(tokens) - known)
            taken.add(number, offset + known, tokens[known:])
            out = passed.setdefault(passage.lane, Draft())
            out.add(passage.down_id, offset + known, tokens[known:], log_probs[known:])
    if taken:
        passages.log(Frame.of(taken))
    for lane, out in passed.items():
        lane.sink.on_frame(Frame.of(out))
    return gaps
