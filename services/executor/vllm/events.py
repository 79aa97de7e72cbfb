"""vLLM's block events under our names. Pure.

vLLM names a block by a hash of its own, which starts from a seed of the process; we chain ours over the tokens
that come with each event, behind the name of the parent (libs.tokens.blocks). A first block's parent is the
salt, which the event tells: its extra keys are the adapter's name and the request's cache salt. So the names are
those that admission computes, and a block whose salt is not known is left unnamed rather than named wrongly: a
missed hit is dear, a false one is a lie.

vLLM may hold several blocks of the same content and tells each of them; a name is stored with the first and
removed with the last.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from libs.kvcache.values import BlockEvent
from libs.tokens.blocks import chain, link, salt


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that have become findable, one behind the other."""

    hashes: Sequence[Hashable]
    """vLLM's, opaque."""
    parent: Hashable | None
    """None where the first of them begins a prompt."""
    tokens: Sequence[int]
    adapter: str = ""
    keys: Sequence[object] = ()
    """The first block's extra keys."""
    whole: bool = True
    """Whether these blocks alone hold the keys and values of their tokens. Not so in a model with several kinds
    of attention, whose hits need a block of each kind."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that are not findable any more."""

    hashes: Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class Cleared:
    """No block is findable any more."""


Event = Stored | Removed | Cleared


class BlockNames:
    """The names of the blocks in one model's cache. Holds one entry per findable block.

    Args:
        model: The base model's name, first part of the salt.
        block_tokens: Tokens per block.
    """

    def __init__(self, model: str, block_tokens: int) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._names: dict[Hashable, int | None] = {}  # None: cannot be named
        self._held: dict[Hashable, int] = {}  # blocks of this content

    @property
    def findable(self) -> int:
        """Contents that can be found, named or not."""
        return len(self._names)

    def translate(self, events: Sequence[Event]) -> list[BlockEvent]:
        """What the events say, in their order."""
        told: list[BlockEvent] = []
        for event in events:
            match event:
                case Stored():
                    told += self._store(event)
                case Removed():
                    told += self._remove(event)
                case Cleared():
                    self._names.clear()
                    self._held.clear()
                    told.append(BlockEvent("cleared"))
        return told

    def _store(self, event: Stored) -> list[BlockEvent]:
        names = self._chain(event)
        fresh = []
        for block, name in zip(event.hashes, names, strict=True):
            self._held[block] = self._held.get(block, 0) + 1
            if self._held[block] == 1:
                self._names[block] = name
                if name is not None:
                    fresh.append(name)
        return [BlockEvent("stored", fresh)] if fresh else []

    def _remove(self, event: Removed) -> list[BlockEvent]:
        gone = []
        for block in event.hashes:
            held = self._held.get(block, 0) - 1
            if held > 0:
                self._held[block] = held
            elif held == 0:
                del self._held[block]
                name = self._names.pop(block)
                if name is not None:
                    gone.append(name)
        return [BlockEvent("removed", gone)] if gone else []

    def _chain(self, event: Stored) -> list[int | None]:
        step, count = self._block_tokens, len(event.hashes)
        unnamed: list[int | None] = [None] * count
        if not event.whole or len(event.tokens) != count * step:
            return unnamed
        if event.parent is None:
            root = self._root(event)
            return unnamed if root is None else list(chain(event.tokens, step, root))
        parent = self._names.get(event.parent)
        if parent is None:
            return unnamed
        return list(_chain_on(parent, event.tokens, step))

    def _root(self, event: Stored) -> bytes | None:
        """The salt of a prompt; None when it cannot be told."""
        keys = list(event.keys)
        if event.adapter:
            if keys[:1] != [event.adapter]:
                return None
            del keys[0]
        if not keys:
            # An adapter's blocks without a salt would pass for the base's.
            return None if event.adapter else salt(self._model, "")
        if len(keys) > 1 or not isinstance(keys[0], str):
            return None  # of an image, say
        return salt(self._model, keys[0])


def _chain_on(parent: int, tokens: Sequence[int], block_tokens: int) -> Iterator[int]:
    """The names of full blocks behind a known one, as libs.tokens.blocks.chain would have them."""
    for start in range(0, len(tokens), block_tokens):
        parent = link(parent, tokens[start : start + block_tokens])
        yield parent
