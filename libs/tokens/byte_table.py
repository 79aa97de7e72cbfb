"""The bytes of every token of a byte-level vocabulary.

Decoding such tokens is joining bytes: a table and an incremental UTF-8 decoder do it in bounded memory and
time. The `tokenizers` package's DecodeStream is as fast for one token at a time (0.6 µs; this takes a fourth
of its time for eight), but with bytes that are not UTF-8 it holds back all that follows and decodes it again
for each token (200 µs per token after 2,000), and what it holds cannot be had at the end.
"""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer as Encoder


def _alphabet() -> dict[int, int]:
    """GPT-2's map from characters to the bytes they stand for.

    Printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100
    on, in order.
    Source: OpenAI's GPT-2 encoder, `bytes_to_unicode`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: byte for byte in printable} | {0x100 + n: byte for n, byte in enumerate(others)}


BYTES = _alphabet()
LETTERS = "".join(map(chr, BYTES))


class ByteTable:
    """The bytes of each token id; none for special tokens and ids that do not exist."""

    __slots__ = ("_table",)

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = tuple(table)

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes of several tokens."""
        table = self._table
        try:
            return b"".join([table[token] for token in ids])
        except IndexError:
            return b"".join([table[token] for token in ids if token < len(table)])


def byte_table(encoder: Encoder) -> ByteTable | None:
    """The table of a tokenizer, or None when its vocabulary is not byte-level."""
    decoder = json.loads(encoder.to_str())["decoder"]
    if decoder is None or decoder["type"] != "ByteLevel":
        return None
    vocabulary = encoder.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token in vocabulary.items():
        table[token] = _bytes(text)
    for token, added in encoder.get_added_tokens_decoder().items():
        if added.special:
            table[token] = b""
    return ByteTable(table)


def _bytes(text: str) -> bytes:
    # An added token may have characters outside of the alphabet; it then stands for its own text.
    if text.strip(LETTERS):
        return text.encode()
    return text.translate(BYTES).encode("latin-1")
