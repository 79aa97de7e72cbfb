"""Responses of a Triton server as pieces of an answer."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import NotSupported
from libs.lane.work import FinishReason
from libs.tokens.tokenizer import Tokenizer
from services.executor.triton.answer import TextAnswer, TokenAnswer
from services.executor.triton.tensors import Tensor, numbers, string
from tests.system.triton.tokenizer import write_tokenizer


def tokens(*ids: int, log_probs: tuple[float, ...] = (), **more: int) -> dict[str, Tensor]:
    found = {
        "output_ids": numbers("output_ids", "INT32", ids, (1, 1, len(ids))),
        "sequence_length": numbers("sequence_length", "INT32", [len(ids)]),
        **{name: numbers(name, "INT32", [value]) for name, value in more.items()},
    }
    if log_probs:
        found["output_log_probs"] = numbers("output_log_probs", "FP32", log_probs)
    return found


def text(value: str, **more: int) -> dict[str, Tensor]:
    found = {name: numbers(name, "INT32", [number]) for name, number in more.items()}
    return {"text_output": string("text_output", value), **found}


def test_tokens_and_their_end() -> None:
    answer = TokenAnswer(10, [7], log_probs=False, block_tokens=32)
    assert answer.push(tokens(1), final=False) == ([1], [], None, None)
    assert answer.push(tokens(2, 3, kv_cache_reused_blocks=2), final=False) == ([2, 3], [], 64, None)
    assert not answer.complete
    assert answer.push({}, final=True).finish is FinishReason.STOP


def test_tokens_up_to_the_length() -> None:
    answer = TokenAnswer(2, [7], log_probs=False, block_tokens=32)
    answer.push(tokens(1), final=False)
    assert answer.push(tokens(2), final=True) == ([2], [], None, FinishReason.LENGTH)
    assert answer.complete


def test_an_end_token_is_no_part_of_the_answer() -> None:
    answer = TokenAnswer(3, [7, 8], log_probs=False, block_tokens=32)
    assert answer.push(tokens(1, 8, 5), final=False).tokens == [1]
    assert answer.complete
    assert answer.push(tokens(9), final=True) == ([], [], None, FinishReason.STOP)


def test_tokens_beyond_the_sequence_length_are_padding() -> None:
    outputs = {**tokens(1, 2, 3), "sequence_length": numbers("sequence_length", "INT32", [1])}
    assert TokenAnswer(9, [], log_probs=False, block_tokens=32).push(outputs, final=False).tokens == [1]


@pytest.mark.parametrize("cumulative", [False, True])
def test_log_probs_are_those_of_the_new_tokens(cumulative: bool) -> None:
    answer = TokenAnswer(9, [7], log_probs=True, block_tokens=32)
    answer.push(tokens(1, log_probs=(-1.0,)), final=False)
    second = (-1.0, -2.0, -4.0) if cumulative else (-2.0, -4.0)
    assert answer.push(tokens(2, 7, log_probs=second), final=True).log_probs == [-2.0]


def test_missing_log_probs_are_a_fault() -> None:
    with pytest.raises(ValueError, match="1 tokens came with 0 log-probabilities"):
        TokenAnswer(9, [7], log_probs=True, block_tokens=32).push(tokens(1), final=False)


def test_an_answer_made_again() -> None:
    answer = TokenAnswer(9, [7], log_probs=True, block_tokens=32, again=[1, 2, 3])
    assert answer.push(tokens(1, 2, log_probs=(-1.0, -2.0)), final=False) == ([], [], None, None)
    assert answer.push(tokens(3, 4, log_probs=(-3.0, -4.0)), final=False) == ([4], [-4.0], None, None)
    with pytest.raises(NotSupported):
        TokenAnswer(9, [7], log_probs=False, block_tokens=32, again=[1]).push(tokens(2), final=False)
    with pytest.raises(NotSupported):
        TokenAnswer(9, [7], log_probs=False, block_tokens=32, again=[1]).push({}, final=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def test_text_finishes_by_the_servers_count(tokenizer: Tokenizer) -> None:
    told = TextAnswer(4, tokenizer, cumulative=False, block_tokens=32)
    told.push(text("abcdef", num_output_tokens=3), final=False)
    assert not told.complete
    assert told.push(text("", num_output_tokens=1), final=True).finish is FinishReason.LENGTH
    silent = TextAnswer(4, tokenizer, cumulative=False, block_tokens=32)
    silent.push(text("abcdef"), final=False)
    assert silent.push({}, final=True).finish is FinishReason.STOP


def test_text_that_changes_is_refused(tokenizer: Tokenizer) -> None:
    answer = TextAnswer(9, tokenizer, cumulative=True, block_tokens=32)
    answer.push(text("abc"), final=False)
    with pytest.raises(NotSupported, match="took back"):
        answer.push(text("abd"), final=False)


@given(st.text(max_size=12), st.lists(st.integers(1, 5)))
def test_no_grouping_of_bytes_changes_cumulative_text(tokenizer: Tokenizer, whole: str, cuts: list[int]) -> None:
    """As a BLS sends it: all bytes so far, those of half a character as U+FFFD."""
    whole = whole.replace("\ufffd", "?").encode("utf-8", "ignore").decode()
    answer = TextAnswer(99, tokenizer, cumulative=True, block_tokens=32)
    ids: list[int] = []
    data, at = whole.encode(), 0
    for cut in cuts:
        at += cut
        ids += answer.push(text(data[:at].decode("utf-8", "replace")), final=False).tokens
    ids += answer.push(text(whole), final=False).tokens
    ids += answer.push({}, final=True).tokens
    assert tokenizer.decode(ids) == whole


@given(st.text(max_size=12), st.integers(0, 50))
def test_text_made_again_loses_only_what_passed(tokenizer: Tokenizer, whole: str, passed: int) -> None:
    data = whole.encode("utf-8", "ignore")
    passed = min(passed, len(data))
    answer = TextAnswer(99, tokenizer, cumulative=False, block_tokens=32, again=data[:passed])
    ids = [token for each in data.decode() for token in answer.push(text(each), final=False).tokens]
    ids += answer.push({}, final=True).tokens
    assert tokenizer.byte_table is not None
    assert tokenizer.byte_table.join(ids) == data[passed:]


def test_the_wire_format_of_strings() -> None:
    assert string("x", "\u00e9").data == struct.pack("<I", 2) + "\u00e9".encode()
