"""Stages that a test plays by hand, and a sink that puts answers together: what tests of stages are made of."""

from collections.abc import Sequence
from math import isnan

from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.stage import LaneNotReady, Sink
from libs.lane.work import Decision, FinishReason, Note, Outcome, QueueState, Sampling, Tier, Work


def work(index: int = 0, *, tokens: int = 8, prompt: int = 4, deadline: float = 2e9, **changes: object) -> Work:
    """A work that wants `tokens` tokens."""
    values: dict[str, object] = {
        "request_id": f"request-{index}", "tenant": "t", "tier": Tier.INTERACTIVE, "model": "m", "pool": "m",
        "prompt": list(range(prompt)), "sampling": Sampling(max_tokens=tokens), "deadline": deadline,
    }  # fmt: skip
    return Work(**{**values, **changes})  # type: ignore[arg-type]


def token(work: Work, position: int) -> int:
    """The one right token at a position of a work's answer."""
    return int(work.request_id.rpartition("-")[2]) * 1000 + position


def answer(work: Work) -> list[int]:
    """The whole right answer."""
    return [token(work, position) for position in range(work.sampling.max_tokens)]


class HandStage:
    """A Stage that does what the test says. `lane` is the one opened last."""

    def __init__(self, ready: bool = True) -> None:
        self.opens_ready = ready
        self.lanes: list[HandLane] = []

    @property
    def lane(self) -> "HandLane":
        return self.lanes[-1]

    def open(self, sink: Sink) -> "HandLane":
        self.lanes.append(self.new_lane(sink))
        if self.opens_ready:
            sink.on_ready()
        return self.lane

    def new_lane(self, sink: Sink) -> "HandLane":
        return HandLane(sink, self.opens_ready)

    async def explain(self, work: Work) -> Sequence[Decision]:
        return [Decision("hand", "run", work.request_id)]

    async def queues(self) -> Sequence[QueueState]:
        return []


class HandLane:
    """What has come up the lane, and what the test lets come down."""

    def __init__(self, sink: Sink, ready: bool) -> None:
        self.sink = sink
        self.ready = ready
        self.closed = False
        self.works: dict[int, Work] = {}
        """Without an outcome, by work id."""
        self.sent: list[Work] = []
        """Every work that ever came, in order."""
        self.made: dict[int, int] = {}
        """Tokens of each answer so far."""
        self.cancels: list[int] = []

    def submit(self, work_id: int, work: Work) -> None:
        if not self.ready:
            raise LaneNotReady("by hand")
        assert work_id not in self.works, f"work id {work_id} is in use"
        self.works[work_id] = work
        self.made[work_id] = len(work.resumed)
        self.sent.append(work)
        if work.resumed:
            assert list(work.resumed) == answer(work)[: len(work.resumed)]

    def cancel(self, work_id: int) -> None:
        self.cancels.append(work_id)

    def close(self) -> None:
        self.closed, self.ready = True, False
        self.works.clear()

    def step(self, *work_ids: int, count: int = 1) -> None:
        """`count` right tokens for each of these works, in one frame; for all, if none is named."""
        frame = Draft()
        for work_id in work_ids or list(self.works):
            one, made = self.works[work_id], self.made[work_id]
            tokens = answer(one)[made : made + count]
            if tokens:
                frame.add(work_id, made, tokens)
                self.made[work_id] += len(tokens)
        if frame:
            self.sink.on_frame(Frame.of(frame))

    def end(self, work_id: int, outcome: Outcome | None = None) -> None:
        """Ends a work, well if nothing else is said."""
        del self.works[work_id]
        self.sink.on_outcome(work_id, outcome or Outcome(FinishReason.LENGTH, output_tokens=self.made[work_id]))

    def run(self) -> None:
        """Lets everything end well."""
        for work_id in list(self.works):
            self.step(work_id, count=self.works[work_id].sampling.max_tokens)
            self.end(work_id)

    def cut(self) -> None:
        """Breaks the lane; the stage forgets its works."""
        self.ready = False
        self.works.clear()
        self.sink.on_broken("cut")

    def mend(self) -> None:
        """Brings it back."""
        self.ready = True
        self.sink.on_ready()


class Answers:
    """A Sink that holds every promise of a lane against what comes down."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.notes: dict[int, list[Note]] = {}
        self.log_probs: dict[int, list[float]] = {}

    def on_ready(self) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        for work_id, offset, tokens, log_probs in frame.entries():
            assert work_id not in self.outcomes, f"tokens of work {work_id} behind its outcome"
            answer = self.tokens.setdefault(work_id, [])
            assert offset == len(answer), f"work {work_id}: offset {offset} behind {len(answer)} tokens"
            answer += tokens
            self.log_probs.setdefault(work_id, []).extend(x for x in log_probs if not isnan(x))

    def on_note(self, work_id: int, note: Note) -> None:
        self.notes.setdefault(work_id, []).append(note)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        assert work_id not in self.outcomes, f"work {work_id} ended twice"
        self.outcomes[work_id] = outcome

    def on_broken(self, reason: str) -> None:
        raise AssertionError(reason)
