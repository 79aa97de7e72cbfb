"""What a server answers to one request, as pieces of a stream. Pure."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from libs.errors import NotSupported
from libs.lane.work import FinishReason
from libs.tokens.tokenizer import Tokenizer
from services.executor.stream.source import Piece
from services.executor.stream.text import Replay, TextTokens, diverged
from services.executor.triton.tensors import Tensor

BROKEN = "\ufffd"
"""What a tokenizer shows for the bytes of a character that is not whole yet."""


class Answer(Protocol):
    """Takes in the responses of one request, in order."""

    @property
    def complete(self) -> bool:
        """Whether the server has made all tokens that it was asked for, even if it has not said so."""
        ...

    def push(self, outputs: Mapping[str, Tensor], final: bool) -> Piece:
        """What a response brings. Raises ValueError when it is not as the contract has it, and NotSupported
        when an answer that is made again comes out different."""
        ...


class TokenAnswer:
    """The answer of a model of flavor `tensorrt_llm`.

    Args:
        most: Tokens asked for.
        ends: Tokens that end an answer and are no part of it. TensorRT-LLM leaves out its end_id, but not the
            stop words.
        log_probs: Whether they are wanted.
        block_tokens: Tokens per block, to count cached tokens.
        again: Tokens that have passed on already, and that this answer repeats.
    """

    def __init__(
        self, most: int, ends: Sequence[int], log_probs: bool, block_tokens: int, again: Sequence[int] = ()
    ) -> None:
        self._most = most
        self._ends = frozenset(ends)
        self._log_probs = log_probs
        self._block_tokens = block_tokens
        self._replay = Replay(list(again))
        self._made = 0
        self._ended = False

    @property
    def complete(self) -> bool:
        return self._ended or self._made >= self._most

    def push(self, outputs: Mapping[str, Tensor], final: bool) -> Piece:
        tokens: list[int] = []
        log_probs: list[float] = []
        if "output_ids" in outputs and not self._ended:
            tokens = [int(token) for token in outputs["output_ids"].numbers]
            if "sequence_length" in outputs:
                tokens = tokens[: int(outputs["sequence_length"].numbers[0])]
            if self._log_probs and tokens:
                log_probs = self._aligned(outputs, len(tokens))
            self._made += len(tokens)
            for n, token in enumerate(tokens):
                if token in self._ends:
                    self._ended, tokens, log_probs = True, tokens[:n], log_probs[:n]
                    break
        fresh = self._replay.push(tokens)
        finish = None
        if final:
            if not self._replay.done:
                raise diverged()
            finish = FinishReason.LENGTH if self._made >= self._most and not self._ended else FinishReason.STOP
        return Piece(fresh, log_probs[len(tokens) - len(fresh) :], _cached(outputs, self._block_tokens), finish)

    def _aligned(self, outputs: Mapping[str, Tensor], count: int) -> list[float]:
        """Those of the new tokens: some versions send those of all tokens so far."""
        tensor = outputs.get("output_log_probs")
        values = [] if tensor is None else [float(value) for value in tensor.numbers]
        if len(values) < count:
            raise ValueError(f"{count} tokens came with {len(values)} log-probabilities")
        return values[len(values) - count :]


class TextAnswer:
    """The answer of a model of flavor `ensemble` or `bls`.

    Args:
        most: Tokens asked for; the server's, not those that its text is cut into.
        tokenizer: Cuts the text.
        cumulative: Whether each response has all text so far, as `tensorrt_llm_bls` sends with
            accumulate_tokens; else it has what is new.
        block_tokens: Tokens per block, to count cached tokens.
        again: Bytes of text that have passed on already, and that this answer repeats.
    """

    def __init__(
        self, most: int, tokenizer: Tokenizer, cumulative: bool, block_tokens: int, again: bytes = b""
    ) -> None:
        self._most = most
        self._cut = TextTokens(tokenizer)
        self._cumulative = cumulative
        self._block_tokens = block_tokens
        self._replay = Replay(again)
        self._passed = ""
        self._held = ""
        self._made = 0

    @property
    def complete(self) -> bool:
        return self._made >= self._most

    def push(self, outputs: Mapping[str, Tensor], final: bool) -> Piece:
        text = ""
        if "text_output" in outputs:
            text = b"".join(outputs["text_output"].strings[:1]).decode("utf-8", "replace")
            told = outputs.get("num_output_tokens")
            self._made += int(told.numbers[0]) if told is not None else bool(text)
        fresh = self._fresh(text, final) if self._cumulative else text
        tokens = self._cut.push_bytes(self._replay.push(fresh.encode()))
        finish = None
        if final:
            tokens += self._cut.flush()
            if not self._replay.done:
                raise diverged()
            finish = FinishReason.LENGTH if self.complete else FinishReason.STOP
        return Piece(tokens, (), _cached(outputs, self._block_tokens), finish)

    def _fresh(self, text: str, final: bool) -> str:
        """What all text so far has beyond what passed; a character that may still change is held back."""
        if text:
            if not text.startswith(self._passed):
                raise NotSupported("the server took back text that it had sent")
            self._held = text[len(self._passed) :]
        whole = self._held if final else self._held.rstrip(BROKEN)
        self._passed += whole
        self._held = self._held[len(whole) :]
        return whole


def _cached(outputs: Mapping[str, Tensor], block_tokens: int) -> int | None:
    """Prompt tokens that were found in the cache, where the server tells."""
    reused = outputs.get("kv_cache_reused_blocks")
    return None if reused is None else int(reused.numbers[0]) * block_tokens
