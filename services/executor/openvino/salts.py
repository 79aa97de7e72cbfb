"""Keeps prefixes of different salts apart in an engine whose cache knows only token ids. Pure.

The engine names a block by a hash of its 64-bit token ids, chained from the first block on. The prepared graph
looks only at an id's low bits (libs.models.graph), so a number in the high bits of a prompt's first id makes other
names of all blocks behind it, and the same keys and values. Each salt has a number of its own that is never given
to another: unlike with a hash, two salts cannot meet.

The one exception: the engine's repetition penalty refuses ids outside of the vocabulary. Prompts with that penalty
go in as they are, and `Claims` sees to it that no two salts among them begin alike.
"""

from collections import OrderedDict
from collections.abc import Sequence

REMEMBERED = 1 << 16
"""Salts whose numbers are kept, least recently used given up first. One that comes again gets a new number: it
finds nothing of its old prefixes, and nothing of others."""

MOST_CLAIMS = 1024


class Salts:
    """Numbers of salts for one engine."""

    def __init__(self, vocabulary: int) -> None:
        self._bits = (vocabulary - 1).bit_length()
        self._next = 1
        self._numbers: OrderedDict[str, int] = OrderedDict()

    @property
    def most(self) -> int:
        """The highest number: ids stay positive 64-bit integers."""
        return (1 << (62 - self._bits)) - 1

    def mark(self, tokens: Sequence[int], salt: str) -> list[int]:
        """The tokens, the first of them with the salt's number."""
        number = self._numbers.get(salt)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._numbers[salt] = number
            if len(self._numbers) > REMEMBERED:
                self._numbers.popitem(last=False)
        self._numbers.move_to_end(salt)
        return self.with_number(tokens, number)

    def with_number(self, tokens: Sequence[int], number: int) -> list[int]:
        """The tokens, the first of them with this number."""
        return [tokens[0] + (number << self._bits), *tokens[1:]]


class Claims:
    """Which salt owns which beginnings among the prompts that carry no number.

    Two prompts can share a block only if the shorter one's beginning, up to a block, is the longer one's, too.
    Holds at most MOST_CLAIMS beginnings, and takes no further ones until it is cleared with the cache.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._owners: dict[tuple[int, ...], str] = {}

    def take(self, prompt: Sequence[int], salt: str) -> bool:
        """Claims a prompt's beginning for a salt. False when another salt has it, or there is no room."""
        start = tuple(prompt[: self._block_tokens])
        if self._owners.get(start) == salt:
            return True
        if len(self._owners) >= MOST_CLAIMS:
            return False
        for other, owner in self._owners.items():
            shorter = min(len(start), len(other))
            if owner != salt and start[:shorter] == other[:shorter]:
                return False
        self._owners[start] = salt
        return True

    def clear(self) -> None:
        """The engine's cache is empty."""
        self._owners.clear()
