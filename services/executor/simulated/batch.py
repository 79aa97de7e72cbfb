"""The sequences that decode: one token each per step, at a cost per token of a few list operations in C.

Almost every step of almost every sequence is like the one before, so nothing looks at a sequence until it
needs looking at: a calendar says at which step it outgrows its blocks or makes its last token.
"""

from collections.abc import Iterator
from itertools import repeat

from libs.lane.draft import Draft
from libs.lane.work import NAN, FinishReason, Work
from services.executor.simulated import answers


class Sequence:
    """A work inside the model. Becomes another object when it is preempted."""

    __slots__ = (
        "blocks", "cached_tokens", "computed", "delta", "digest", "due", "end", "finish", "hashes",
        "index", "log_probs", "produced", "reported", "tokens", "work", "work_id",
    )  # fmt: skip

    def __init__(self, work_id: int, work: Work, digest: int, end: int, finish: FinishReason) -> None:
        self.work_id = work_id
        self.work = work
        self.digest = digest
        self.end = end
        """Tokens of the whole answer."""
        self.finish = finish
        self.hashes: list[int] = []
        """Of the prompt's full blocks."""
        self.produced = len(work.resumed)
        """Tokens of the answer when it last entered the batch."""
        self.computed = 0
        """Tokens of prompt and answer whose keys and values are there; counted until it decodes."""
        self.blocks = 0
        self.cached_tokens = 0
        self.reported = False
        """Whether its start has been told."""
        self.index = -1
        """Its place in the batch; -1 while it does not decode."""
        self.delta = 0
        """Position of its next token, less the number of the step that makes it."""
        self.due = 0
        """The step at which it needs looking at."""
        self.tokens: Iterator[int] = iter(())
        self.log_probs: Iterator[float] = iter(())

    @property
    def to_compute(self) -> int:
        """Tokens that the engine takes as the prompt."""
        return len(self.work.prompt) + self.produced

    def start_answer(self) -> None:
        """Makes the answer ready from where it stands."""
        self.tokens = answers.tokens(self.digest, self.produced)
        self.log_probs = answers.log_probs(self.digest, self.produced) if self.work.log_probs else repeat(NAN)


class DecodeBatch:
    """The decoding sequences as parallel lists, and their calendar. Bounded by the model's slots."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._sequences: list[Sequence] = []
        self._work_ids: list[int] = []
        self._deltas: list[int] = []
        self._tokens: list[Iterator[int]] = []
        self._log_probs: list[Iterator[float]] = []
        self._asked = 0  # sequences that want log-probabilities
        self._context = 0  # the sequences' contexts, added up, less the number of the step for each
        self._calendar: dict[int, dict[int, Sequence]] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def join(self, sequence: Sequence, position: int, step: int) -> None:
        """Takes a sequence in, whose token `position` is made in step `step`."""
        sequence.index = len(self._sequences)
        sequence.delta = position - step
        self._sequences.append(sequence)
        self._work_ids.append(sequence.work_id)
        self._deltas.append(sequence.delta)
        self._tokens.append(sequence.tokens)
        self._log_probs.append(sequence.log_probs)
        self._asked += sequence.work.log_probs
        self._context += len(sequence.work.prompt) + sequence.delta
        self.schedule(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Lets a sequence go; the last one takes its place."""
        index, sequence.index = sequence.index, -1
        columns: tuple[list[object], ...] = (
            self._sequences, self._work_ids, self._deltas, self._tokens, self._log_probs,
        )  # type: ignore[assignment]  # fmt: skip
        for column in columns:
            last = column.pop()
            if index < len(column):
                column[index] = last
        if index < len(self._sequences):
            self._sequences[index].index = index
        self._asked -= sequence.work.log_probs
        self._context -= len(sequence.work.prompt) + sequence.delta
        day = self._calendar.get(sequence.due)
        if day is not None and day.pop(sequence.work_id, None) is not None and not day:
            del self._calendar[sequence.due]

    def schedule(self, sequence: Sequence) -> None:
        """Notes when a sequence needs looking at: when a token needs a block that it does not have (the keys
        and values of the token before are computed with it), or at its last token."""
        outgrown = sequence.blocks * self._block_tokens - len(sequence.work.prompt) + 1
        sequence.due = min(outgrown, sequence.end - 1) - sequence.delta
        self._calendar.setdefault(sequence.due, {})[sequence.work_id] = sequence

    def context(self, step: int) -> int:
        """Tokens in front of those that this step makes, over all sequences. Costs the same for any number."""
        return self._context + step * len(self._sequences)

    def due(self, step: int) -> list[Sequence]:
        """The sequences that need looking at in this step; each is to leave or to be scheduled again."""
        return list(self._calendar.pop(step, {}).values())

    def emit(self, step: int, frame: Draft) -> None:
        """Makes one token per sequence. `frame` must be empty."""
        frame.work_ids = self._work_ids.copy()
        frame.offsets = [delta + step for delta in self._deltas]
        frame.counts = [1] * len(self._work_ids)
        frame.token_ids = list(map(next, self._tokens))
        if self._asked:
            frame.log_probs = list(map(next, self._log_probs))
