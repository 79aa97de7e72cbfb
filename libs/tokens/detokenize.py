"""Token ids to text, piece by piece, never a part of a character."""

import codecs
from collections.abc import Sequence

from libs.tokens.byte_table import ByteTable
from libs.tokens.tokenizer import Tokenizer

CHARACTER_TOKENS = 8
"""Tokens that one character can be spread over, with room: UTF-8 has four bytes at most."""


class Detokenizer:
    """Turns the tokens of one answer into text.

    All pieces joined are `tokenizer.decode` of all tokens. Special tokens are left out. What has been
    returned depends on the tokens so far alone, not on how they were grouped: to go on elsewhere, push the
    tokens so far into a new Detokenizer, drop what it returns, and go on.

    Holds the bytes of one character at most, or CHARACTER_TOKENS tokens.
    """

    __slots__ = ("_way", "flush", "push")

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = tokenizer.byte_table
        way = self._way = _ByBytes(table) if table is not None else _ByText(tokenizer)
        # Bound once: this runs per token of every stream.
        self.push = way.push
        """Takes in tokens; returns the text that they complete, "" if none."""
        self.flush = way.flush
        """The text of what is left at the end: U+FFFD for a broken character."""

    @property
    def table(self) -> ByteTable | None:
        """What spells the next tokens, as long as they are whole characters, without this; None for vocabularies that
        are not byte-level, and within a character."""
        return self._way.table if isinstance(self._way, _ByBytes) and not self._way.within else None


class _ByBytes:
    """For byte-level vocabularies: only where a token ends within a character, its bytes go through a decoder."""

    __slots__ = ("_decoder", "table", "within")

    def __init__(self, table: ByteTable) -> None:
        self.table = table
        self._decoder: codecs.IncrementalDecoder | None = None
        self.within = False
        """Whether the last token ended within a character."""

    def push(self, ids: Sequence[int]) -> str:
        if not self.within and (text := self.table.text(ids)) is not None:
            return text
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._decoder.decode(self.table.join(ids))
        self.within = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        return self._decoder.decode(b"", True) if self.within and self._decoder is not None else ""


class _ByText:
    """For every other vocabulary: decode the last tokens with and without the new ones, and compare.

    The way of text-generation-inference's decode_token. Not the `tokenizers` package's DecodeStream: that
    cannot be flushed, and ends with an error where a decoder changes text in front. Bytes that are not UTF-8
    show as U+FFFD each; where the package's decoder also turns good characters beside them into U+FFFD,
    those that have been returned stay.
    """

    __slots__ = ("_decode", "_new", "_seen", "_special")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode_slowly
        self._special = tokenizer.special_ids
        self._seen: list[int] = []
        self._new: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        # One at a time: what is returned must not depend on the grouping.
        return "".join([self._push_one(token) for token in ids if token not in self._special])

    def _push_one(self, token: int) -> str:
        self._new.append(token)
        text = self._decode(self._seen + self._new)
        if text.endswith("\ufffd") and len(self._new) < CHARACTER_TOKENS:
            return ""
        return self.flush()

    def flush(self) -> str:
        before = self._decode(self._seen)
        text = self._decode(self._seen + self._new)
        text = text[len(before) :] if text.startswith(before) else self._decode(self._new)
        # A token that shows nothing yet (a space at the very beginning) still changes what comes behind it.
        self._seen = self._new if text else [*self._seen, *self._new][-CHARACTER_TOKENS:]
        self._new = []
        return text
