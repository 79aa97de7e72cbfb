"""One work in the child: how far it is, and what the engine is to take and make of it next. Pure."""

from services.executor.openvino.wire import Submit


class Run:
    """A work in the child."""

    __slots__ = (
        "answer", "cached_tokens", "entered_behind", "entry_tokens", "fresh", "hashes", "kept_out", "matched",
        "queued", "since_entry", "suspicion", "work",
    )  # fmt: skip

    def __init__(self, work: Submit, hashes: list[int], now: float) -> None:
        self.work = work
        self.queued = now
        """Since when it waits."""
        self.kept_out: float | None = None
        """Since when another salt's claim keeps it out."""
        self.answer = list(work.resumed)
        """Tokens of the answer that have passed on."""
        self.hashes = hashes
        """Of its full blocks, as far as computed."""
        self.cached_tokens: int | None = None
        """None until it first enters the engine."""
        self.entered_behind = 0
        """Tokens of the answer that it had when it entered."""
        self.entry_tokens = 0
        """Tokens given to the engine as the prompt."""
        self.since_entry = 0
        """Tokens that the engine has made since."""
        self.matched = 0
        """How many of these repeated the answer, which a grammar makes necessary."""
        self.fresh = True
        """Whether it has brought nothing since it entered."""
        self.suspicion = 0
        """Faults of the engine at which it was fresh."""

    @property
    def replays(self) -> bool:
        """Whether the engine makes the answer from its start: a grammar's state cannot be set."""
        return bool(self.work.grammar_form)

    @property
    def unmarked(self) -> bool:
        """Whether its prompt goes in without its salt's number: see services.executor.openvino.salts."""
        return self.work.repetition_penalty != 1

    @property
    def holds(self) -> bool:
        """Whether it must not be paused now. What replays has to get further than it was; and the engine would
        forget which tokens count for presence and frequency penalties."""
        if self.replays:
            return len(self.answer) < 2 * self.entered_behind
        penalised = self.work.presence_penalty != 0 or self.work.frequency_penalty != 0
        return penalised and self.since_entry > 0

    @property
    def seed(self) -> int:
        """For sampling from here on: the random numbers so far are not drawn again."""
        made = 0 if self.replays else len(self.answer) - len(self.work.resumed)
        return (self.work.seed + made) % (1 << 64)

    @property
    def behind(self) -> bool:
        """Whether the engine has not yet repeated the answer so far."""
        return self.replays and self.matched < len(self.answer)

    @property
    def tokens(self) -> list[int]:
        """What the engine takes as the prompt when the work enters now."""
        return self.work.prompt if self.replays else self.work.prompt + self.answer

    @property
    def remaining(self) -> int:
        """Tokens that the engine is to make at most."""
        return self.work.max_tokens - (0 if self.replays else len(self.answer))
