"""The engine's block events, told in our names: an exact index of its prefix cache. Pure.

An event names blocks by the engine's hashes, and carries the tokens of those that were stored; salt and adapter it
does not carry. A chain is traced from its first block, whose name the engine makes of tokens, salt and adapter
(hashes.py): it is that of a work that was submitted. A block that cannot be traced is not told: an unknown block is a
hit missed, a wrong one would be a lie.

Every event has a number. Where one is missing, the engine's buffer has overflowed: everything is told as gone, and
what is stored from then on is told again. Blocks that stayed come back when a work proves them: it found them in
the cache, and they have not been removed since it was submitted.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from libs.kvcache.values import BlockEvent
from libs.tokens.blocks import link
from services.executor.trtllm.hashes import engine_hash

MOST_ROOTS = 16_384
"""First blocks of works that are remembered, under each salt and adapter; least recently submitted ones are forgotten
first, and their chains cannot be traced any more."""

MOST_REMOVALS = 65_536
"""Removed blocks that are remembered, to judge proofs."""

_Root = TypeVar("_Root", int, tuple[int, ...])


@dataclass(frozen=True, slots=True)
class Prefix:
    """Whose blocks a work makes, and under which names."""

    salt: str
    salt_id: int | None
    """The engine's number for it; None for none, or when the engine does not tell."""
    adapter: str
    adapter_id: int | None
    hashes: tuple[int, ...]
    """Ours, of its full blocks."""

    @property
    def told(self) -> bool:
        """Whether its blocks can have our names. The engine keeps adapters apart even under one salt, so a salt is that
        of the adapter that it begins with (libs.catalogue.salted), or else of the base."""
        return self.adapter in ("", self.salt.partition("/")[0])

    @property
    def named(self) -> bool:
        """Whether it is known how the engine names its blocks."""
        return self.salt_id is not None or not self.salt


@dataclass(frozen=True, slots=True)
class Proof:
    """When a work was submitted, so that what it finds in the cache can be judged."""

    prefix: Prefix
    tokens: Sequence[int]
    at: int
    gaps: int


class BlockNames:
    """Translates events. Holds a name per block of the engine, and few more.

    Args:
        block_tokens: Tokens per block.
        most_names: Beyond these, names are forgotten whose blocks may be gone: twice the engine's blocks, on all
            levels.
    """

    def __init__(self, block_tokens: int, most_names: int) -> None:
        self.gaps = 0
        """How often events were missing."""
        self.untraced = 0
        """Full blocks stored that could not be told."""
        self.hash_known = False
        """Whether the engine has named a block as hashes.py would."""
        self.capacity = 0
        """Blocks of the engine, on the GPU; 0 until it has told."""
        self.block_tokens = block_tokens
        self._most_names = most_names
        self._roots: OrderedDict[int, int | None] = OrderedDict()  # first blocks: the engine's name → ours, if told
        self._lone: OrderedDict[tuple[int, ...], int | None] = OrderedDict()  # their tokens → ours, if there is but one
        self._root_name = lru_cache(MOST_ROOTS)(engine_hash)
        self._names: dict[int, int] = {}  # the engine's name → ours
        self._told: set[int] = set()  # the engine's names of the blocks that we say are there
        self._present: set[int] = set()  # ours of the same
        self._removed: OrderedDict[int, int] = OrderedDict()  # the engine's name → at which event
        self._forgotten = 0
        self._at = 0
        self._next: int | None = None
        self._window: int | None = None
        self._out: list[BlockEvent] = []

    @property
    def pending(self) -> int:
        """Events to be drained."""
        return len(self._out)

    @property
    def blocks(self) -> int:
        """How many blocks are there."""
        return len(self._present)

    @property
    def told(self) -> frozenset[int]:
        """Our names of the blocks that are there."""
        return frozenset(self._present)

    def submit(self, prefix: Prefix, tokens: Sequence[int]) -> Proof:
        """A work goes to the engine, with these tokens as its prompt."""
        if len(tokens) >= self.block_tokens and prefix.hashes:
            self._expect(prefix, tuple(tokens[: self.block_tokens]))
        return Proof(prefix, tokens, self._at, self.gaps)

    def found(self, proof: Proof, cached_tokens: int) -> None:
        """A work has begun, and so many of its tokens were in the cache."""
        prefix, size = proof.prefix, self.block_tokens
        if not self.gaps or proof.gaps != self.gaps or not self.hash_known or not (prefix.told and prefix.named):
            return
        blocks = min(cached_tokens // size, len(prefix.hashes))
        if self._present.issuperset(prefix.hashes[:blocks]):
            return
        name, stored = 0, []
        for index in range(blocks):
            tokens = proof.tokens[index * size : (index + 1) * size]
            name = engine_hash(tokens, name, prefix.salt_id, prefix.adapter_id)
            if self._removed.get(name, self._forgotten) > proof.at:
                break
            if name not in self._told:
                self._tell(name, prefix.hashes[index])
                stored.append(prefix.hashes[index])
        self._say("stored", stored)

    def event(self, event: Mapping[str, Any]) -> None:
        """One event as `get_kv_cache_events_async` yields it."""
        number, data = event.get("event_id"), event.get("data")
        if not isinstance(number, int) or not isinstance(data, Mapping):
            return
        self._at += 1
        if self._next is not None and number != self._next:
            self._gap()
        self._next = number + 1
        kind, window = data.get("type"), event.get("window_size")
        if kind == "created" and (self._window is None or (window or 0) >= self._window):
            # A model with sliding windows has a cache for each; prefixes are those of the widest.
            self._window = window or 0
            self.capacity = next(iter(data.get("num_blocks_per_cache_level") or [0]))
        if self._window is not None and window is not None and window < self._window:
            return
        if kind == "stored":
            self._stored(data)
        elif kind == "removed":
            self._remove(data["block_hashes"])
        # "updated" moves a block to the host's memory or back: a prefix there is found as well.

    def drain(self) -> list[BlockEvent]:
        """What has changed since the last call."""
        out, self._out = self._out, []
        return out

    def _stored(self, data: Mapping[str, Any]) -> None:
        parent, stored = data.get("parent_hash"), []
        ours = self._names.get(parent) if parent else None
        root = not parent
        for block in data["blocks"]:
            name = block["block_hash"]
            tokens = [token["token_id"] for token in block["tokens"]]
            if len(tokens) < self.block_tokens:
                break  # the last, not full: nothing is chained behind it
            if root:
                ours = self._trace(name, tuple(tokens))
            elif ours is not None:
                ours = link(ours, tokens)
            root = False
            self._removed.pop(name, None)
            if ours is None:
                self.untraced += 1
            elif name not in self._told:
                self._tell(name, ours)
                stored.append(ours)
        self._say("stored", stored)

    def _expect(self, prefix: Prefix, root: tuple[int, ...]) -> None:
        """A work begins with this block."""
        ours = prefix.hashes[0] if prefix.told else None
        if prefix.named:
            _remember(self._roots, self._root_name(root, 0, prefix.salt_id, prefix.adapter_id), ours)
        if not self.hash_known:
            _remember(self._lone, root, ours if self._lone.get(root, ours) == ours else None)

    def _trace(self, name: int, tokens: tuple[int, ...]) -> int | None:
        """Our name of a first block."""
        if name in self._roots:
            self.hash_known = True
            return self._roots[name]
        return None if self.hash_known else self._lone.get(tokens)

    def _remove(self, names: Sequence[int]) -> None:
        removed = []
        for name in names:
            self._removed[name] = self._at
            self._removed.move_to_end(name)
            ours = self._names.pop(name, None)
            if name in self._told and ours is not None:
                self._told.discard(name)
                self._present.discard(ours)
                removed.append(ours)
        while len(self._removed) > MOST_REMOVALS:
            self._forgotten = self._removed.popitem(last=False)[1]
        self._say("removed", removed)

    def _gap(self) -> None:
        self.gaps += 1
        self._told.clear()
        self._present.clear()
        self._removed.clear()
        self._forgotten = self._at
        self._out = [BlockEvent("cleared")]

    def _tell(self, name: int, ours: int) -> None:
        self._told.add(name)
        self._present.add(ours)
        self._names[name] = ours
        if len(self._names) > self._most_names:  # names of blocks whose removal was missed
            self._names = {name: ours for name, ours in self._names.items() if name in self._told}

    def _say(self, kind: Literal["stored", "removed"], hashes: list[int]) -> None:
        if hashes:
            self._out.append(BlockEvent(kind, hashes))


def _remember(roots: OrderedDict[_Root, int | None], root: _Root, ours: int | None) -> None:
    roots[root] = ours
    roots.move_to_end(root)
    if len(roots) > MOST_ROOTS:
        roots.popitem(last=False)
