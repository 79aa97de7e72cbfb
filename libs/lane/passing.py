"""Passing a frame on: the loop that every token of the mesh runs through, twice.

It is a module of its own because it decides what a token costs. In the usual frame every work is known, all of
them came from one lane in front, and nothing is missing or repeated: then the arrays go on as they are, and only
the ids change, at 0.3 µs per work. Whatever is unusual takes the general way, at 1.5 µs.
"""

from collections.abc import Hashable, Mapping
from typing import Protocol, TypeVar

from libs.lane.progress import Gap, Progress
from libs.lane.stage import Sink
from libs.lane.work import Frame


class FrontLane(Hashable, Protocol):
    """The lane in front that a work came from."""

    @property
    def sink(self) -> Sink:
        """Where its tokens go."""
        ...


class Passage(Hashable, Protocol):
    """A work on its way through a stage."""

    @property
    def lane(self) -> FrontLane:
        """Where it came from."""
        ...

    @property
    def streaming(self) -> bool:
        """Whether its tokens are still wanted."""
        ...

    @property
    def down_id(self) -> int:
        """Its number there."""
        ...

    @property
    def progress(self) -> Progress:
        """Its tokens so far; `pass_on` adds to them."""
        ...


P = TypeVar("P", bound=Passage)


def pass_on(frame: Frame, passages: Mapping[int, P]) -> Mapping[P, Gap]:
    """Gives each entry of a frame to the lane in front that its work came from: one frame per lane.

    Args:
        frame: From the lane behind; only lent, and only lent on.
        passages: The works on that lane, by their number there. Entries of others are dropped.

    Returns works some of whose tokens are missing; what came before the gap has passed.
    """
    return {} if _pass_on_whole(frame, passages) else _pass_on_sorted(frame, passages)


def _pass_on_whole(frame: Frame, passages: Mapping[int, P]) -> bool:
    """Passes the frame on as it is, if it is a usual one; else does nothing."""
    found = [passages.get(work_id) for work_id in frame.work_ids]
    if not found or found[0] is None or 0 in frame.counts:
        return False
    if len(set(frame.work_ids)) != len(found):
        return False  # one stands in it twice: its second entry continues or repeats the first
    lane = found[0].lane
    works: list[P] = []
    for passage, offset in zip(found, frame.offsets, strict=True):
        if passage is None or passage.lane is not lane or not passage.streaming:
            return False
        if len(passage.progress.tokens) != offset:
            return False
        works.append(passage)
    tokens = frame.token_ids
    if len(tokens) == len(works):  # one each, since none is empty
        for passage, token in zip(works, tokens, strict=True):
            passage.progress.tokens.append(token)
    else:
        end = 0
        for passage, count in zip(works, frame.counts, strict=True):
            start, end = end, end + count
            passage.progress.tokens += tokens[start:end]
    ids = [passage.down_id for passage in works]
    lane.sink.on_frame(Frame(ids, frame.offsets, frame.counts, tokens, frame.log_probs))
    return True


def _pass_on_sorted(frame: Frame, passages: Mapping[int, P]) -> Mapping[P, Gap]:
    tokens, log_probs = frame.token_ids, frame.log_probs
    passed: dict[FrontLane, Frame] = {}
    gaps: dict[P, Gap] = {}
    end = 0
    for work_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
        start, end = end, end + count
        passage = passages.get(work_id)
        if passage is None or not passage.streaming:
            continue  # cancelled, or past its deadline
        try:
            known = passage.progress.advance(offset, tokens[start:end])
        except Gap as gap:
            gaps.setdefault(passage, gap)
            continue
        if known < count:
            lane = passage.lane
            if (out := passed.get(lane)) is None:
                out = passed[lane] = Frame()
            out.add(passage.down_id, offset + known, tokens[start + known : end], log_probs[start + known : end])
    for lane, out in passed.items():
        lane.sink.on_frame(out)
    return gaps
