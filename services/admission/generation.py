"""One answer on its way out: tokens in, text and token ids out. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
from msgspec.structs import replace

from libs.catalogue import model_of, unpin
from libs.errors import HeadraceError
from libs.lane.work import FinishReason, Outcome
from libs.tokens.byte_table import ByteTable
from libs.tokens.detokenize import Detokenizer
from libs.tokens.stop import StopStrings
from services.admission.admit import Admitted, Checked


@dataclass(frozen=True, slots=True)
class Degradation:
    """What was given up for a request, because its tier was saturated."""

    level: int = 0
    """Rungs of the ladder that were in force."""
    rungs: Sequence[str] = ()
    """Their names."""


UNDEGRADED = Degradation()
MANY = 16
"""Tokens to come, from which it is worth it to make an answer steady."""


@dataclass(frozen=True, slots=True)
class ToolStep:
    """A tool call within an answer, told as it goes on; the message is headrace.inference.v1.ToolStep."""

    step: int
    tool: str
    arguments: str
    state: Literal["waiting", "running", "done", "failed"]
    result: str = ""
    approval_id: str = ""


class Finish(msgspec.Struct, frozen=True):
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
    degradation: Degradation = UNDEGRADED
    tried: Sequence[str] = ()
    """Models that were tried in front of `model`."""


class Chunk(msgspec.Struct):
    """What accumulated since the last chunk."""

    text: str = ""
    version: str = ""
    """The version of the model that answers; with the first tokens."""
    waiting: str = ""
    """Why it cannot run yet; empty when that is no news."""
    token_ids: list[int] = []
    count: int = 0
    """New tokens, whether or not their ids are here."""
    log_probs: list[float] = []
    restart: bool = False
    """What came before this chunk is void."""
    tool_steps: list[ToolStep] = []
    """Behind the text of this chunk."""
    finish: Finish | None = None
    error: HeadraceError | None = None


def parts(chunk: Chunk) -> Sequence[Chunk]:
    """A chunk in what can be told in one message each: that it begins anew, what was made, what tools do, the end."""
    if not chunk.restart and not chunk.tool_steps:
        return (chunk,)
    anew = [Chunk(restart=True)] if chunk.restart else []
    made = replace(chunk, restart=False, tool_steps=[])
    if not chunk.tool_steps:
        return [*anew, made] if made != Chunk() else anew
    if (begun := replace(made, finish=None, error=None)) != Chunk():
        anew.append(begun)
    return [*anew, Chunk(tool_steps=chunk.tool_steps, finish=chunk.finish, error=chunk.error)]


class Answer(Protocol):
    """What both doors see of an answer: one generation, or a conversation of several under a contract."""

    @property
    def request_id(self) -> str:
        """What the request is called."""
        ...

    def take(self) -> Chunk:
        """What has accumulated; it is not here any more. The chunk with `finish` or `error` is the last."""
        ...


class Generation:
    """An answer from its admission to its end; `take` gives what has accumulated.

    A slow client's tokens wait here merged, at most `max_tokens` of them.

    Args:
        detokenizer: None when neither text nor stop strings are asked for.
        changed: Called when there is something to take; cheap.
        started: Monotonic seconds of the request's arrival.
        degradation: What was given up for it.
    """

    def __init__(
        self,
        checked: Checked,
        admitted: Admitted,
        detokenizer: Detokenizer | None,
        changed: Callable[["Generation"], None],
        started: float,
        degradation: Degradation = UNDEGRADED,
    ) -> None:
        self.checked = checked
        self.work = admitted.work
        self.reason = admitted.reason
        """Why it was admitted, and how."""
        self.keeps_text = False
        """Whether the answer's text is wanted when it has ended."""
        self._kept: list[str] = []
        self.started = started
        self.degradation = degradation
        self.first_token: float | None = None
        self.tokens = len(self.work.resumed)
        """Tokens made so far, resumed ones and void ones included."""
        self.stop = ""
        """The stop string that has appeared; then the answer is complete, its work is to be cancelled, and only
        its outcome is awaited. It may lie in what the caller resumed from."""
        self.ended = False
        self.steady = False
        """Whether its tokens pass elsewhere for now; services.admission.steady."""
        self.resumed_text = ""
        """What the caller has of the answer, where that is known."""
        self._version = ""
        self._tried: Sequence[str] = ()
        self._changed = changed
        self._spell(detokenizer)
        self._pending = Chunk()
        if detokenizer is not None and self.work.resumed:
            # The caller has this text. What is held back, a half character or stop string, goes on from here.
            self.resumed_text = self._shown(detokenizer.push(self.work.resumed))

    def _spell(self, detokenizer: Detokenizer | None) -> None:
        """The text begins anew. What is wanted is looked up once here, and not with each token."""
        request = self.checked.request
        self._detokenizer = detokenizer
        self._stops = StopStrings(request.sampling.stop) if request.sampling.stop else None
        self._text, self._token_ids, self._log_probs = request.text, request.token_ids, request.log_probs

    def _shown(self, text: str) -> str:
        """What of a piece of text may be shown now; sets `stop`."""
        if self._stops is None:
            return text
        text, stopped = self._stops.push(text)
        self.stop = stopped or ""
        return text

    @property
    def table(self) -> ByteTable | None:
        """What spells its next tokens, where nothing but their text is wanted of them and many may come; else None."""
        wants_more = self._token_ids or self._log_probs or not self._text or self._stops is not None
        few = self.work.sampling.max_tokens - self.tokens < MANY
        return None if wants_more or few or self._detokenizer is None else self._detokenizer.table

    @property
    def kept(self) -> str:
        """The answer's text, where it is wanted."""
        return "".join(self._kept)

    @property
    def request_id(self) -> str:
        """What the request is called."""
        return self.work.request_id

    @property
    def made(self) -> int:
        """Tokens that were made for it here, void ones included."""
        return self.tokens - len(self.work.resumed)

    def become(self, checked: Checked, admitted: Admitted, detokenizer: Detokenizer | None) -> None:
        """The same request for another model, before it has a token."""
        self.checked, self.work, self.reason = checked, admitted.work, admitted.reason
        self._spell(detokenizer)

    def push(self, tokens: Sequence[int], log_probs: Sequence[float], now: float) -> None:
        """Takes new tokens in. When `stop` is set after it, the work is to be cancelled."""
        if self.ended or self.stop:
            return
        pending, count = self._pending, len(tokens)
        if self.first_token is None:
            self.first_token = now
            pending.version, pending.waiting = self._version, ""
        self.tokens += count
        pending.count += count
        if self._token_ids:
            pending.token_ids += tokens
        if self._log_probs:
            pending.log_probs += log_probs
        if self._detokenizer is not None:
            text = self._detokenizer.push(tokens)
            if self._stops is not None:
                text = self._shown(text)
            if self._text:
                pending.text += text
            if self.keeps_text:
                self._kept.append(text)
        self._changed(self)

    def passed(self, tokens: int, text: str) -> None:
        """Tokens that have passed elsewhere, and their text."""
        self.tokens += tokens
        if self.keeps_text:
            self._kept.append(text)

    def note(self, version: str, waiting: str, tried: Sequence[str] = ()) -> None:
        """Something about its way; each is empty when it is no news."""
        if version:
            self._version = version
        if tried:
            self._tried = tuple(tried)
        if waiting and self.first_token is None and not self.ended:
            self._pending.waiting = waiting
            self._changed(self)

    def restart(self, detokenizer: Detokenizer | None) -> None:
        """The answer begins anew: what it was so far is void, though it counts as used. Nothing happens to an answer
        that is complete.

        Args:
            detokenizer: A new one, where there was one before.
        """
        if self.ended or self.stop:
            return
        self._spell(detokenizer)
        self.first_token = None
        self._pending = Chunk(restart=True)
        self._kept = []
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
            if self._detokenizer is not None and not self.stop and self._text:
                rest = self._detokenizer.flush()
                if self._stops is not None:
                    rest = self._stops.push(rest)[0] + self._stops.flush()
                self._pending.text += rest
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
                model=self._model(),
                degradation=self.degradation,
                tried=self._tried,
            )
        changed, self._changed = self._changed, lambda _: None  # who listens knows this answer, too
        changed(self)

    def take(self) -> Chunk:
        """What has accumulated; it is not here any more."""
        chunk, self._pending = self._pending, Chunk()
        return chunk

    def _model(self) -> str:
        """The one that answered: of an alias, the router's choice."""
        pool, adapter = unpin(self._version)
        return model_of(adapter or pool) or self.checked.spec.name
