"""One answer of an endpoint: chunks in, pieces out. Pure."""

from collections.abc import Sequence

from libs.errors import RequestInvalid
from libs.lane.work import NAN, FinishReason, Work
from libs.tokens.tokenizer import Tokenizer
from services.executor.remote.chunks import Choice, Chunk
from services.executor.remote.usage import Usage
from services.executor.stream.source import Piece
from services.executor.stream.text import Replay, Surrogates, TextTokens, diverged, written

LENGTHS = frozenset({"length", "max_tokens"})


class Answer:
    """Makes tokens of what an endpoint sends, and takes out what it repeats.

    Args:
        replay: The answer is made from its start, resumed tokens included; else it goes on behind their text.
        token_ids: The endpoint tells token ids.
    """

    def __init__(self, tokenizer: Tokenizer, work: Work, replay: bool, token_ids: bool) -> None:
        self.finish: FinishReason | None = None
        self.usage: Usage | None = None
        """As told last; it comes behind the answer, or grows along with it."""
        self._token_ids = token_ids
        self._ends = frozenset() if work.sampling.ignore_end else tokenizer.eos_ids
        self._log_probs = work.log_probs
        self._tokens = TextTokens(tokenizer)
        self._pairs = Surrogates()
        text, rest = written(tokenizer, work.resumed)
        self._ids = Replay(list(work.resumed) if replay and token_ids else [])
        self._bytes = Replay(b"" if token_ids else text.encode() + rest if replay else rest)

    def push(self, chunk: Chunk) -> Piece | None:
        """What a chunk brings; None for nothing. The finish is kept, for the usage comes behind it.

        Raises NotSupported when an answer comes out different from the one that is resumed, RequestInvalid when
        the endpoint's filter ended it.
        """
        if (told := chunk.usage) is not None:
            cached = told.prompt_tokens_details.cached_tokens if told.prompt_tokens_details is not None else None
            self.usage = Usage(told.prompt_tokens, cached or 0, told.completion_tokens)
        if not chunk.choices or self.finish is not None:
            return None
        choice = chunk.choices[0]
        piece = self._by_ids(choice) if self._token_ids else self._by_text(choice)
        if choice.finish_reason is not None:
            piece = self._end(piece, choice.finish_reason)
        return piece if piece.tokens else None

    def _by_ids(self, choice: Choice) -> Piece:
        ids = choice.token_ids or []
        if choice.finish_reason == "stop" and ids and ids[-1] in self._ends:
            ids = ids[:-1]
        log_probs = self._aligned(choice, len(ids))
        new = self._ids.push(ids)
        return Piece(new, log_probs[len(ids) - len(new) :])

    def _aligned(self, choice: Choice, count: int) -> Sequence[float]:
        if not self._log_probs:
            return ()
        pairs = choice.logprobs.pairs() if choice.logprobs is not None else []
        if len(pairs) < count:
            return [NAN] * count
        return [NAN if log_prob is None else log_prob for _, log_prob in pairs[:count]]

    def _by_text(self, choice: Choice) -> Piece:
        text = choice.new_text
        if not self._log_probs:
            return Piece(self._cut(text)) if text else Piece()
        pairs = choice.logprobs.pairs() if choice.logprobs is not None else []
        if "".join(part for part, _ in pairs) != text:
            pairs = [(text, None)]
        tokens: list[int] = []
        log_probs: list[float] = []
        for part, log_prob in pairs:
            ids = self._cut(part)
            tokens += ids
            # Of a token that we cut into several, the first carries it all.
            log_probs += [NAN if log_prob is None else log_prob, *[NAN] * len(ids)][: len(ids)]
        return Piece(tokens, log_probs)

    def _cut(self, text: str) -> list[int]:
        if self._bytes.done:
            return self._tokens.push(text)
        return self._tokens.push_bytes(self._bytes.push(self._pairs.push(text).encode()))

    def _end(self, piece: Piece, reason: str) -> Piece:
        if reason == "content_filter":
            raise RequestInvalid("the endpoint's content filter ended the answer")
        self.finish = FinishReason.LENGTH if reason in LENGTHS else FinishReason.STOP
        if not (self._ids.done and self._bytes.done):
            raise diverged()
        rest = self._tokens.flush()
        log_probs = [*piece.log_probs, *[NAN] * len(rest)] if self._log_probs else ()
        return Piece([*piece.tokens, *rest], log_probs)
