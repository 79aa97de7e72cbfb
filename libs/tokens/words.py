"""The words of a text, each tokenized once.

A byte-level vocabulary cuts a text into words by a regular expression, and tokenizes each word by itself. So most of
a text is words that were tokenized before. The `tokenizers` package takes 1.3 µs per token for cutting and looking up;
here a look into a dict takes 0.15 µs, and a word that is new 1 µs.

The package's expressions speak of all of Unicode (`\\p{L}`), Python's cannot. Within ASCII they can be told exactly.
Other texts are cut at blanks behind a word only, which every such expression does, and what is new goes to the package.
Vocabularies whose expression is not known here are left to the package.

Whether a word was tokenized before can be told by timing, and all tenants share what is remembered. An answer never
depends on it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from libs.tokens.byte_table import BYTES

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")

MOST_WORDS = 32_768
"""That are remembered, some 200 bytes each; with one more, all are forgotten."""
LONGEST_WORD = 32
"""Characters of a word that is remembered."""

_CONTRACTIONS = "'(?:[sdmt]|ll|ve|re)"
_GPT_2 = rf" ?[A-Za-z]+|{_CONTRACTIONS}| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
# Digits are cut out first; to what stands in front of one, the text ends there.
_DIGITS = rf" ?[A-Za-z]+|{_CONTRACTIONS}|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+"
_SPLITS = {
    split: split.replace(r"[^\r\n\p{L}\p{N}]", r"[^\r\nA-Za-z0-9]")
    .replace(r"[^\s\p{L}\p{N}]", r"[^\sA-Za-z0-9]")
    .replace(r"\p{L}", "[A-Za-z]")
    .replace(r"\p{N}", "[0-9]")
    for split in (LLAMA_3, QWEN_2)
}
_LETTERS = {byte: letter for letter, byte in BYTES.items()}
"""The character that stands for each byte in a byte-level vocabulary."""


class NotByWords(Exception):
    """The text has a token that is found before the text is cut, or one that it must not have."""


def word_pattern(pre_tokenizer: Mapping[str, Any] | None) -> re.Pattern[str] | None:
    """How a tokenizer.json cuts a text in ASCII into words; None where that is not known here."""
    match steps(pre_tokenizer):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            pattern = _GPT_2
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
        ]:
            pattern = _DIGITS
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ] if regex in _SPLITS:
            pattern = _SPLITS[regex]
        case _:
            return None
    return re.compile(pattern, re.ASCII)


def steps(part: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """What a normalizer or pre-tokenizer of a tokenizer.json does, one after the other."""
    if part is None:
        return []
    inner = part.get("pretokenizers") or part.get("normalizers")
    return [part] if inner is None else [step for each in inner for step in steps(each)]


class Words:
    """The words of one vocabulary. May be used from several threads.

    Args:
        pattern: From `word_pattern`.
        tokenize: The ids of one word in the vocabulary's own letters; the model alone, no rules around it.
        encode: The ids of a text, by the package.
        control_ids: Ids that no word may have.
        others: Texts of tokens that are found before a text is cut into words.
    """

    def __init__(
        self,
        pattern: re.Pattern[str],
        tokenize: Callable[[str], Sequence[int]],
        encode: Callable[[str], Sequence[int]],
        control_ids: frozenset[int],
        others: Sequence[str] = (),
    ) -> None:
        self._others = re.compile("|".join(map(re.escape, others))) if others else None
        self._cut = pattern.findall
        self._words = _Known(lambda word: tokenize(word.translate(_LETTERS)), control_ids)
        self._pieces = _Known(encode, control_ids)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Raises NotByWords."""
        if self._others is not None and self._others.search(text):
            raise NotByWords
        if text.isascii():
            return list(chain.from_iterable(map(self._words.__getitem__, self._cut(text))))
        return list(chain.from_iterable(map(self._pieces.__getitem__, _pieces(text))))


def _pieces(text: str) -> Iterator[str]:
    """A text cut in front of blanks, but for those behind what may be white space: these belong together."""
    first, *others = text.split(" ")
    piece = first
    for word in others:
        if piece and ((last := piece[-1]).isalnum() or "!" <= last <= "~"):
            yield piece
            piece = " " + word
        else:
            piece += " " + word
    yield piece


class _Known(dict[str, tuple[int, ...]]):
    """The ids of each word; one that is missing is encoded when it is looked up."""

    def __init__(self, encode: Callable[[str], Sequence[int]], control_ids: frozenset[int]) -> None:
        super().__init__()
        self._encode = encode
        self._control_ids = control_ids

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._encode(word))
        if not self._control_ids.isdisjoint(ids):
            raise NotByWords
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids
