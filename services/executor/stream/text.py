"""Text to token ids, for engines that stream text; and what has come before, taken out again. Pure."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, TypeVar

from libs.errors import NotSupported
from libs.tokens.tokenizer import Tokenizer

ANCHOR = "\n"
"""Put before a piece of text that is not to be taken for the beginning of one."""

WORD = 24
"""Characters of a piece that is kept with its tokens."""

UNKNOWN = "\ufffd"
"""Stands for what the vocabulary cannot spell."""

UNSPELLABLE = "the model's vocabulary cannot spell this answer"


class TextTokens:
    """Cuts one answer, which arrives as text, into tokens.

    The tokens of all pieces decode to the text of all pieces, wherever it was cut. They need not be those that
    the engine chose: each piece is encoded alone. A character that the vocabulary cannot spell (some lack bytes)
    becomes U+FFFD. Holds back nothing, but for half a surrogate pair, since JSON can cut one in two; half a pair
    that stays alone becomes U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._spell = _ByBytes(tokenizer) if tokenizer.byte_table is not None else _ByText(tokenizer)
        self._pairs = Surrogates()

    def push(self, text: str) -> list[int]:
        """The tokens of the next piece. Raises NotSupported where the vocabulary cannot even spell U+FFFD."""
        text = self._pairs.push(text)
        return self._spell.spell(text) if text else []

    def push_bytes(self, data: bytes) -> list[int]:
        """The same for a piece that may begin in the middle of a character.

        Raises NotSupported where it does and the vocabulary does not spell bytes.
        """
        start = 0
        while start < len(data) and data[start] & 0xC0 == 0x80:
            start += 1
        ids = self._spell.spell_bytes(data[:start]) if start else []
        return ids + self.push(data[start:].decode())

    def flush(self) -> list[int]:
        """The tokens of what is left at the end."""
        text = self._pairs.flush()
        return self._spell.spell(text) if text else []


class Surrogates:
    """Makes text of pieces in which characters may be spelled as two surrogates, cut apart even."""

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """The next piece without surrogates; a half at its end waits for the other."""
        text = self._half + text
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return _whole(text[:-1] if self._half else text)

    def flush(self) -> str:
        """U+FFFD for a half that stayed alone."""
        half, self._half = self._half, ""
        return _whole(half)


def _whole(text: str) -> str:
    """The text with pairs of surrogates joined, and U+FFFD for those that stand alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _ByBytes:
    """For byte-level vocabularies: what the encoder changes (some normalize) is spelled byte by byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def spell(self, text: str) -> list[int]:
        ids = _encoded(self._tokenizer, text) if len(text) <= WORD else _encoded.__wrapped__(self._tokenizer, text)
        if ids is not None:
            return [*ids]
        if len(text) > 1:
            return [token for character in text for token in self.spell(character)]
        return self.spell_bytes(text.encode())

    def spell_bytes(self, data: bytes) -> list[int]:
        table = _byte_ids(self._tokenizer)
        if all(byte in table for byte in data):
            return [table[byte] for byte in data]
        if data == UNKNOWN.encode():
            raise NotSupported(UNSPELLABLE)
        return self.spell(UNKNOWN)


class _ByText:
    """For every other vocabulary: tries ways to spell, and takes the first that decodes to the text.

    What a token shows depends on those before it: the last two pieces are kept for that.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self._decode = tokenizer.decode_slowly
        self._anchor = tokenizer.encode(ANCHOR)
        self._last: list[int] = []
        self._before: list[int] = []

    def spell(self, text: str) -> list[int]:
        for ids in (self._encode(text), self._anchored(text)):
            if self._decode([*self._before, *ids]) == self._decode(self._before) + text:
                self._before, self._last = [*self._last, *ids], ids
                return ids
        if text == UNKNOWN:
            raise NotSupported(UNSPELLABLE)
        if len(text) == 1:
            return self.spell(UNKNOWN)
        return [token for character in text for token in self.spell(character)]

    def spell_bytes(self, data: bytes) -> list[int]:
        raise NotSupported("the model's vocabulary cannot go on in the middle of a character")

    def _anchored(self, text: str) -> list[int]:
        ids = self._encode(ANCHOR + text)
        length = len(self._anchor)
        return ids[length:] if ids[:length] == self._anchor else []


@lru_cache(maxsize=8192)
def _encoded(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """The encoder's tokens, if they are the text's bytes. The words of answers repeat: 1.5 µs instead of some 10."""
    ids = tokenizer.encode(text)
    assert tokenizer.byte_table is not None
    return ids if tokenizer.byte_table.join(ids) == text.encode() else None


@lru_cache(maxsize=8)
def _byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """The tokens that are one byte. Takes 20 ms for 50,000 tokens; needed only for awkward text."""
    assert tokenizer.byte_table is not None
    join = tokenizer.byte_table.join
    texts = ((join([token]), token) for token in range(tokenizer.vocab_size))
    return {data[0]: token for data, token in texts if len(data) == 1}


def written(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, bytes]:
    """The text of an answer so far, and the bytes of a character at its end that is not whole."""
    if tokenizer.byte_table is None:
        return tokenizer.decode(ids), b""
    decoder = getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(tokenizer.byte_table.join(ids))
    return text, decoder.getstate()[0]


S = TypeVar("S", bytes, list[int])


class Replay(Generic[S]):
    """Takes out of an answer that is made again from its start what has passed on before.

    Works on tokens, or on the bytes of text (whose characters may have been cut).
    """

    def __init__(self, passed: S) -> None:
        self._left: S = passed

    @property
    def done(self) -> bool:
        """Whether all that passed has come again. An answer that ends sooner came out different."""
        return not self._left

    def push(self, part: S) -> S:
        """What is new in the next part. Raises NotSupported when the answer came out different."""
        left = self._left
        if not left:
            return part
        common = min(len(left), len(part))
        if left[:common] != part[:common]:
            raise diverged()
        self._left = left[common:]
        return part[common:]


def diverged() -> NotSupported:
    """The error for an answer that did not come out the same again."""
    return NotSupported("the answer cannot be resumed: the engine made it again, and it came out different")
