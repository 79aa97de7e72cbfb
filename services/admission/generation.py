"""One answer on its way out: tokens in, text and token ids out. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from libs.errors import HeadraceError
from libs.lane.work import FinishReason, Outcome
from libs.tokens.detokenize import Detokenizer
from libs.tokens.stop import StopStrings
from services.admission.admit import Admitted, Checked


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended well."""

    reason: FinishReason
    stop: str
    """The stop string that ended it, or ""."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queued_s: float
    first_token_s: float
    total_s: float
    model: str


@dataclass(slots=True)
class Chunk:
    """What accumulated since the last chunk."""

    text: str = ""
    version: str = ""
    """The version of the model that answers; with the first tokens."""
    waiting: str = ""
    """Why it cannot run yet; empty when that is no news."""
    token_ids: list[int] = field(default_factory=list)
    count: int = 0
    """New tokens, whether or not their ids are here."""
    log_probs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    error: HeadraceError | None = None


class Generation:
    """An answer from its admission to its end; `take` gives what has accumulated.

    A slow client's tokens wait here merged, at most `max_tokens` of them.

    Args:
        detokenizer: None when neither text nor stop strings are asked for.
        changed: Called when there is something to take; cheap.
        started: Monotonic seconds of the request's arrival.
    """

    def __init__(
        self,
        checked: Checked,
        admitted: Admitted,
        detokenizer: Detokenizer | None,
        changed: Callable[["Generation"], None],
        started: float,
    ) -> None:
        self.checked = checked
        self.work = admitted.work
        self.started = started
        self.first_token: float | None = None
        self.tokens = len(self.work.resumed)
        """Tokens of the answer so far, resumed ones included."""
        self.stop = ""
        """The stop string that has appeared; then the answer is complete, its work is to be cancelled, and only
        its outcome is awaited. It may lie in what the caller resumed from."""
        self.ended = False
        self._version = ""
        self._changed = changed
        self._detokenizer = detokenizer
        self._stops = StopStrings(checked.request.sampling.stop)
        self._pending = Chunk()
        if detokenizer is not None and self.work.resumed:
            # The caller has this text. What is held back, a half character or stop string, goes on from here.
            _, stopped = self._stops.push(detokenizer.push(self.work.resumed))
            self.stop = stopped or ""

    def push(self, tokens: Sequence[int], log_probs: Sequence[float], now: float) -> None:
        """Takes new tokens in. When `stop` is set after it, the work is to be cancelled."""
        if self.ended or self.stop:
            return
        pending, request = self._pending, self.checked.request
        if self.first_token is None:
            self.first_token = now
            pending.version, pending.waiting = self._version, ""
        self.tokens += len(tokens)
        pending.count += len(tokens)
        if request.token_ids:
            pending.token_ids += tokens
        if request.log_probs:
            pending.log_probs += log_probs
        if self._detokenizer is not None:
            text, stopped = self._stops.push(self._detokenizer.push(tokens))
            self.stop = stopped or ""
            if request.text:
                pending.text += text
        self._changed(self)

    def note(self, version: str, waiting: str) -> None:
        """Something about its way; each is empty when it is no news."""
        if version:
            self._version = version
        if waiting and self.first_token is None and not self.ended:
            self._pending.waiting = waiting
            self._changed(self)

    def end(self, outcome: Outcome, now: float) -> None:
        """The answer is complete, or has failed; the first end counts.

        Behind a stop string every outcome is a good one: the usual one is that of the cancel.
        """
        if self.ended:
            return
        self.ended = True
        self._pending.waiting = ""
        finish = FinishReason.STOP if self.stop else outcome.finish
        if finish is None:
            self._pending.error = outcome.error
        else:
            if self._detokenizer is not None and not self.stop and self.checked.request.text:
                rest, _ = self._stops.push(self._detokenizer.flush())
                self._pending.text += rest + self._stops.flush()
            first = self.first_token if self.first_token is not None else now
            self._pending.finish = Finish(
                reason=finish,
                stop=self.stop,
                prompt_tokens=len(self.work.prompt),
                cached_tokens=outcome.cached_tokens,
                output_tokens=self.tokens,
                queued_s=outcome.queued_s,
                first_token_s=first - self.started,
                total_s=now - self.started,
                model=self.checked.spec.name,
            )
        self._changed(self)

    def take(self) -> Chunk:
        """What has accumulated; it is not here any more."""
        chunk, self._pending = self._pending, Chunk()
        return chunk
