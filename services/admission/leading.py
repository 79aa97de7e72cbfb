"""The tokens that begin every prompt that begins with the same text. Pure.

The last tokens of a text depend on what follows it: "rea" and "d" are one token, and so may be two line breaks. So it
is tokenized in front of several continuations, and what comes out the same is kept.
"""

import re
from collections.abc import Callable, Iterable, Sequence

CONTINUATIONS = ("a", "The", "1", " a", " 1", "\n", "\n\n", "<", "'s", "é", "世")
"""A letter, a word, a digit, each with and without a blank in front; what merges with line breaks; and what may be cut
into bytes."""

_LAST_WORD = re.compile(r"(?s)\A(.*\S\s+)\S+\s*\Z")


def of_chat(render: Callable[[str], Sequence[int]]) -> list[int]:
    """The tokens of the turns in front of the user's.

    Args:
        render: The tokens of the whole chat, given what the user says.
    """
    return _same(render(continuation) for continuation in CONTINUATIONS)


def of_text(text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
    """The tokens of a text up to its last word, which may go on; nothing where there is no other.

    Args:
        encode: The tokens of a prompt.
    """
    words = _LAST_WORD.match(text)
    if words is None:
        return []
    begins = (words[1] + continuation for continuation in CONTINUATIONS if not continuation[0].isspace())
    return _same(encode(begin) for begin in (text, *begins))


def _same(prompts: Iterable[Sequence[int]]) -> list[int]:
    """The tokens that all of them begin with."""
    first, *others = prompts
    same = len(first)
    for other in others:
        same = min(same, len(other))
        same = next((at for at in range(same) if first[at] != other[at]), same)
    return list(first[:same])
