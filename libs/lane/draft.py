"""A frame while it is being written. Needs nothing but msgspec: engines' children may run in another environment."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.lane.work import NAN, Tokens


@dataclass(slots=True)
class Draft:
    """A frame that is being written, as lists: what an engine's step fills. Fields as in Frame."""

    work_ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add(self, work_id: int, offset: int, tokens: Tokens, log_probs: Sequence[float] = ()) -> None:
        """Appends an entry. `log_probs` is empty or as long as `tokens`."""
        if log_probs:
            missing = len(self.token_ids) - len(self.log_probs)
            if missing:
                self.log_probs.extend([NAN] * missing)
            self.log_probs.extend(log_probs)
        elif self.log_probs:
            self.log_probs.extend([NAN] * len(tokens))
        self.work_ids.append(work_id)
        self.offsets.append(offset)
        self.counts.append(len(tokens))
        self.token_ids.extend(tokens)

    def __bool__(self) -> bool:
        return bool(self.work_ids)
