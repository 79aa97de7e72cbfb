"""The bytes of every token of a byte-level vocabulary.

Decoding such tokens is joining bytes: a table and an incremental UTF-8 decoder do it in bounded memory and
time. The `tokenizers` package's DecodeStream is as fast for one token at a time (0.6 µs; this takes a fourth
of its time for eight), but with bytes that are not UTF-8 it holds back all that follows and decodes it again
for each token (200 µs per token after 2,000), and what it holds cannot be had at the end.
"""

from collections.abc import Collection, Iterable, Sequence

from tokenizers import Tokenizer as Encoder
from tokenizers.decoders import ByteLevel


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
    """The bytes of each token id; none for special tokens and ids that do not exist.

    Nearly every token is whole characters, and is kept as text: then most answers need no decoder.
    """

    __slots__ = ("_rest", "_texts")

    def __init__(self, table: Iterable[bytes]) -> None:
        self._texts: list[str | None] = []
        self._rest: dict[int, bytes] = {}
        """The tokens that are not."""
        for token, data in enumerate(table):
            try:
                self._texts.append(data.decode())
            except UnicodeDecodeError:
                self._texts.append(None)
                self._rest[token] = data

    def texts(self, ids: Sequence[int]) -> list[str | None]:
        """The text of each token, None for those that are not whole characters and for ids that do not exist."""
        try:
            return list(map(self._texts.__getitem__, ids))
        except IndexError:
            return [self._texts[token] if token < len(self._texts) else None for token in ids]

    def text(self, ids: Sequence[int]) -> str | None:
        """The text of several tokens, None where one of them is not whole characters."""
        texts = self._texts
        try:
            return "".join([texts[token] for token in ids])  # type: ignore[misc]  # the TypeError is looked for
        except TypeError:
            return None
        except IndexError:
            return self.text([token for token in ids if token < len(texts)])

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes of several tokens."""
        if (text := self.text(ids)) is not None:
            return text.encode()
        texts, rest = self._texts, self._rest
        known = (token for token in ids if token < len(texts))
        return b"".join([rest[token] if (text := texts[token]) is None else text.encode() for token in known])


def byte_table(encoder: Encoder, special_ids: Collection[int]) -> ByteTable | None:
    """The table of a tokenizer, or None when its vocabulary is not byte-level."""
    if not isinstance(encoder.decoder, ByteLevel):
        return None
    vocabulary = encoder.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token in vocabulary.items():
        table[token] = _bytes(text)
    for token in special_ids:
        table[token] = b""
    return ByteTable(table)


def _bytes(text: str) -> bytes:
    # An added token may have characters outside of the alphabet; it then stands for its own text.
    if text.strip(LETTERS):
        return text.encode()
    return text.translate(BYTES).encode("latin-1")
